"""Scores of images for labels: cosines, and the logits that go into the softmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
