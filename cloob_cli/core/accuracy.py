"""Scores of a classifier, from its scores of every class: top-k accuracy, recall of each class, confusions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.errors import NonFiniteEmbeddingsError


@dataclass(frozen=True)
class Predictions:
    """The answers of a classifier for N examples, and the right ones.

    Attributes:
        places: int64 [N], the number of classes before the right one. Of equal scores the class with the lower number
            comes first, as argmax has it.
        predicted: int64 [N].
        labels: int64 [N].
        margins: float64 [N], the predicted class's score minus the right one's: 0 where the answer is right.
    """

    places: Tensor
    predicted: Tensor
    labels: Tensor
    margins: Tensor

    def top(self, k: int) -> Tensor:
        """bool [N]: the examples whose class is among the k highest."""
        return self.places < k

    def confusions(self, most: int = 20) -> list[tuple[int, int, int]]:
        """(right class, predicted class, how often) of the wrong answers, the most frequent first.

        Of equally frequent ones the one with the widest margin comes first: where each occurs once, the order of the
        classes says nothing.
        """
        counts: Counter[tuple[int, int]] = Counter()
        widest: dict[tuple[int, int], float] = {}
        wrong = self.predicted != self.labels
        columns = (column[wrong].tolist() for column in (self.labels, self.predicted, self.margins))
        for label, predicted, margin in zip(*columns, strict=True):
            pair = label, predicted
            counts[pair] += 1
            widest[pair] = max(margin, widest.get(pair, margin))
        ordered = sorted(counts, key=lambda pair: (-counts[pair], -widest[pair], pair))
        return [(*pair, counts[pair]) for pair in ordered[:most]]

    def confused(self, label: int, predicted: int) -> list[int]:
        """The examples of one confusion, the one with the widest margin first."""
        rows = ((self.labels == label) & (self.predicted == predicted)).nonzero()[:, 0]
        return list(rows[self.margins[rows].argsort(descending=True, stable=True)].tolist())


def predictions(scores: Tensor, labels: Tensor) -> Predictions:
    """The answers that `scores` [N, C] (any float dtype, any device) give, beside the right `labels` (int64 [N]).

    Raises:
        ValueError: not as many labels as rows, or none.
        NonFiniteEmbeddingsError: a score is not finite.
    """
    if labels.shape != scores.shape[:1] or len(labels) == 0:
        raise ValueError(f"each row has one label: {list(scores.shape)} and {list(labels.shape)} do not match")
    if not bool(scores.isfinite().all()):
        raise NonFiniteEmbeddingsError("scores are not finite numbers", "the model's embeddings overflow or are broken")
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    places = ((scores > own) | ((scores == own) & earlier)).sum(dim=1)
    highest = scores.amax(dim=1, keepdim=True)
    predicted = torch.where(
        scores == highest, torch.arange(scores.shape[1], device=scores.device), scores.shape[1]
    ).amin(dim=1)
    margins = (highest.cpu().double() - own.cpu().double())[:, 0]
    return Predictions(places.cpu(), predicted.cpu(), labels.cpu(), margins)


def recall_by_class(right: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The fraction of each class's examples that are right.

    Args:
        right: bool [N].
        labels: int64 [N].

    Returns:
        (classes, recall): int64 [P], the classes that occur, and float64 [P].
    """
    totals = torch.bincount(labels).double()
    hits = torch.bincount(labels, right.double(), minlength=len(totals))
    present = totals.nonzero()[:, 0]
    return present, hits[present] / totals[present]


def class_weights(labels: Tensor) -> Tensor:
    """float64 [N], one over the number of examples of each one's class: with them a mean over the examples is the mean
    over the classes that occur (mean per-class recall, scikit-learn's balanced accuracy).
    """
    return 1 / torch.bincount(labels)[labels].double()
