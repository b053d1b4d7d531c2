"""Accuracy, recall by class and confusions against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from margins import close

from cloob_cli.core.accuracy import class_weights, predictions, recall_by_class
from cloob_cli.errors import NonFiniteEmbeddingsError

COUNTED = "counts of examples, divided in float64"


def answers(examples: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(examples, classes, generator=generator)
    labels = torch.randint(classes - 1, (examples,), generator=generator)  # the last class never occurs
    return scores + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


@pytest.mark.numeric
@pytest.mark.parametrize(("examples", "classes"), [(7, 3), (500, 12), (300, 60)])
def test_scores_equal_those_of_scikit_learn(examples: int, classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = answers(examples, classes, examples)
    found = predictions(scores, labels)
    for k in (1, 2, 5):
        if k < classes:
            expected = metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
            close(found.top(k).double().mean(), expected, COUNTED, atol=1e-12)
    assert found.predicted.tolist() == np.argmax(scores.numpy(), axis=1).tolist()
    present, recall = recall_by_class(found.top(1), labels)
    expected = metrics.recall_score(labels, found.predicted, labels=present, average=None, zero_division=0)
    close(recall, expected, COUNTED, atol=1e-12)
    weights = class_weights(labels)
    mean = (weights * found.top(1)).sum() / weights.sum()
    close(mean, recall.mean(), COUNTED, atol=1e-12)
    table = metrics.confusion_matrix(labels, found.predicted, labels=range(classes))
    assert all(table[label, predicted] == count for label, predicted, count in found.confusions())
    np.fill_diagonal(table, 0)
    assert [count for *_, count in found.confusions(3)] == [n for n in np.sort(table.ravel())[::-1][:3] if n]


@pytest.mark.numeric
def test_mean_per_class_recall_is_the_balanced_accuracy_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, _ = answers(200, 9, 1)
    labels = (torch.arange(200) % 27).clamp(max=8)  # of different sizes
    found = predictions(scores, labels)
    weights = class_weights(labels)
    expected = metrics.balanced_accuracy_score(labels, found.predicted)
    close((weights * found.top(1)).sum() / weights.sum(), expected, COUNTED, atol=1e-12)


def test_of_equal_scores_the_class_that_stands_first_wins() -> None:
    found = predictions(torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.5]]), torch.tensor([1, 0]))
    assert found.predicted.tolist() == [0, 0]
    assert found.places.tolist() == [1, 0]


def test_confusions_come_by_count_then_the_most_confident_mistake_first() -> None:
    labels = torch.tensor([0, 1, 2, 3, 3, 2])
    scores = torch.tensor(
        [
            [0.5, 0.6, 0.0, 0.0],  # 0 for 1, by 0.1
            [0.9, 0.2, 0.0, 0.0],  # 1 for 0, by 0.7, the widest
            [0.0, 0.0, 0.5, 0.8],  # 2 for 3, by 0.3
            [0.1, 0.0, 0.0, 0.0],  # 3 for 0, by 0.1, twice and so first
            [0.3, 0.0, 0.0, 0.1],  # 3 for 0, by 0.2
            [0.0, 0.0, 0.9, 0.8],  # right
        ]
    )
    found = predictions(scores, labels)
    assert found.confusions() == [(3, 0, 2), (1, 0, 1), (2, 3, 1), (0, 1, 1)]
    assert found.confusions(2) == [(3, 0, 2), (1, 0, 1)]
    assert found.confused(3, 0) == [4, 3]
    expected = scores.double().amax(dim=1) - scores.double()[torch.arange(6), labels]
    assert torch.equal(found.margins, expected)
    # Where nothing but the order of the classes is left, that counts.
    tied = predictions(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([2, 1, 0]))
    assert tied.confusions() == [(1, 0, 1), (2, 1, 1)]


def test_what_has_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="each row has one label"):
        predictions(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(NonFiniteEmbeddingsError):
        predictions(torch.tensor([[0.0, torch.nan]]), torch.tensor([0]))
