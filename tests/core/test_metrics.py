"""Recall, accuracy and covariance rank against brute force and cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloob_cli.core.metrics import covariance_rank, recall_at_k, top_k_accuracy


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("n", [3, 7, 1500])
def test_recall_equals_a_full_sort(n):
    queries, keys = unit(n, 6, 0), unit(n, 6, 1)
    relevance = torch.arange(n) // 2  # pairs of equal captions
    order = np.argsort(-(queries @ keys.T).numpy(), axis=1, kind="stable")
    found = recall_at_k(queries, keys, relevance)
    for k in (1, 5, 10):
        expected = np.mean([any(r // 2 == i // 2 for r in order[i, :k]) for i in range(n)])
        assert found[k] == pytest.approx(expected)


def test_recall_of_identical_embeddings_is_one():
    embeddings = unit(40, 8, 2)
    assert recall_at_k(embeddings, embeddings, torch.arange(40)) == {1: 1.0, 5: 1.0, 10: 1.0}


def test_top_k_accuracy():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.1]])
    assert top_k_accuracy(scores, torch.tensor([2, 0, 2]), (1, 2, 5)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 5: 1.0})


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
