"""Recall, accuracy and covariance rank against brute force and cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from margins import close

from cloob_cli.core.metrics import covariance_rank, recall_at_k, top_k_accuracy
from cloob_cli.errors import NonFiniteEmbeddingsError


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.numeric
@pytest.mark.parametrize("n", [3, 7, 1500])
def test_recall_equals_a_full_sort(n):
    queries, keys = unit(n, 6, 0), unit(n, 6, 1)
    order = np.argsort(-(queries.double() @ keys.T.double()).numpy(), axis=1, kind="stable")
    found = recall_at_k(queries, keys)
    for k in (1, 5, 10):
        expected = np.mean([i in order[i, :k] for i in range(n)])
        close(found[k], expected, "counts of queries; one in a thousand may change places by rounding", atol=2e-3)


def test_recall_of_identical_embeddings_is_one():
    embeddings = unit(40, 8, 2)
    assert recall_at_k(embeddings, embeddings) == {1: 1.0, 5: 1.0, 10: 1.0}


def test_an_equal_caption_of_another_pair_is_no_hit():
    """As in CLIP_benchmark: of two equal keys one is the query's own, and each comes first every other time. The second
    image is at right angles to all four.
    """
    images = torch.eye(4)
    texts = torch.eye(4)[[0, 0, 2, 3]]
    assert recall_at_k(images, texts, (1, 2)) == {1: (1 / 2 + 1 / 4 + 1 + 1) / 4, 2: (1 + 2 / 4 + 1 + 1) / 4}


def test_recall_of_a_collapsed_model_is_that_of_chance():
    same = unit(1, 8, 3).expand(20, 8)
    assert recall_at_k(same, same, (1, 5, 50)) == {1: 0.05, 5: 0.25, 50: 1.0}


def test_top_k_accuracy():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.1]])
    assert top_k_accuracy(scores, torch.tensor([2, 0, 2]), (1, 2, 5)) == {1: 1 / 3, 2: 2 / 3, 5: 1.0}


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match="each query belongs to one key"):
        recall_at_k(unit(5, 4, 0), unit(4, 4, 1))
    with pytest.raises(ValueError, match="each query belongs to one key"):
        recall_at_k(torch.empty(0, 4), torch.empty(0, 4))
    with pytest.raises(ValueError, match="each row has one label"):
        top_k_accuracy(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    broken = unit(5, 4, 0)
    broken[3, 1] = torch.nan
    with pytest.raises(NonFiniteEmbeddingsError):
        recall_at_k(unit(5, 4, 0), broken)
    with pytest.raises(NonFiniteEmbeddingsError):
        top_k_accuracy(broken, torch.zeros(5, dtype=torch.int64))


def test_covariance_rank_counts_directions():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(500, 3, generator=generator) @ torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:3]
    assert covariance_rank(low + 5.0) == 3  # the mean does not count
    assert covariance_rank(torch.randn(5000, 16, generator=generator)) == 16
    eigenvalues = torch.tensor([90.0, 8.0, 1.5, 0.5]).sqrt()
    assert covariance_rank(torch.cat([torch.diag(eigenvalues), -torch.diag(eigenvalues)])) == 3


def test_covariance_rank_equals_numpy():
    data = unit(300, 20, 5) * torch.linspace(0.05, 1, 20)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(data.double().numpy().T)))[::-1]
    expected = int(np.searchsorted(np.cumsum(eigenvalues) / eigenvalues.sum(), 0.99)) + 1
    assert covariance_rank(data) == expected
