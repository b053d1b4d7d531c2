"""Scores of images for labels: cosines, and the logits that go into the softmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cloob_cli.core.few_shot import Centers, choose_retrieval, retrieval_logits


@dataclass(frozen=True)
class Scores:
    """Of B images and C labels: `cosines` and `logits`, [B, C]."""

    cosines: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Scorer:
    """Scores embeddings by the cosine with each label's text.

    Args:
        classes: unit-norm [C, D], the labels' texts.
        inv_tau: the model's inverse temperature.
    """

    classes: Tensor
    inv_tau: float

    def __call__(self, embeddings: Tensor) -> Scores:
        """Score embeddings, unit-norm [B, D]."""
        cosines = embeddings @ self.classes.T
        return Scores(cosines, self.inv_tau * cosines)


class ExampleScorer:
    """Scores embeddings by retrieval from examples and the labels' texts (`core/few_shot.py`).

    Args:
        classes: unit-norm [C, D], the labels' texts.
        examples: unit-norm [M, D].
        labels: int64 [M], the number of each example's label.
    """

    def __init__(self, classes: Tensor, examples: Tensor, labels: Tensor) -> None:
        self._classes, self._labels = classes, labels
        self._centers = Centers.of(classes, examples)
        self._texts, self._examples = self._centers.texts(classes), self._centers.images(examples)
        self.choice = choose_retrieval(self._texts, self._examples, labels)

    def __call__(self, embeddings: Tensor) -> Scores:
        """Score embeddings, unit-norm [B, D]; the cosines are those with texts."""
        queries = self._centers.images(embeddings)
        logits = retrieval_logits(queries, self._texts, self._examples, self._labels, self.choice)
        return Scores(embeddings @ self._classes.T, logits)


AnyScorer = Scorer | ExampleScorer
