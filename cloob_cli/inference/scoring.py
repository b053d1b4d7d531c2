"""Scores of images for labels: cosines, and the logits that go into the softmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cloob_cli.core.few_shot import Retrieval, retrieval_logits


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


@dataclass(frozen=True)
class ExampleScorer:
    """Scores embeddings by retrieval from examples and the labels' texts (`core/few_shot.py`).

    Args:
        classes: unit-norm [C, D], the labels' texts.
        examples: unit-norm [M, D].
        labels: int64 [M], the number of each example's label.
        choice: the inverse temperature and the weight of texts.
    """

    classes: Tensor
    examples: Tensor
    labels: Tensor
    choice: Retrieval

    def __call__(self, embeddings: Tensor) -> Scores:
        """Score embeddings, unit-norm [B, D]; the cosines are those with texts."""
        logits = retrieval_logits(embeddings, self.classes, self.examples, self.labels, self.choice)
        return Scores(embeddings @ self.classes.T, logits)


AnyScorer = Scorer | ExampleScorer
