"""Embeddings as the products of the retrieval take them: deviations from a mean, and what the mean adds.

Embeddings in a narrow cone, as at the start of training, differ by less than the rounding of what they share. So
products see deviations from the mean of all processes' rows, and what the mean adds is a number for each row and one
for each column of a score matrix, computed from the exact deviations (docs/loss.md, "Deviations from the mean").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """Rows [n, D] of the matrix `name` as its mean [D] and their deviations from it, an operand.

    `biases` holds, by the name of the other matrix, beta times the products [n] of the exact deviations with that
    matrix's mean: what scores have on top of the product of deviations (a constant is left out, which no softmax sees).
    """

    name: str
    mean: Tensor
    deviations: Tensor
    biases: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.deviations)

    def tensors(self) -> list[Tensor]:
        """What differs from row to row, and so travels."""
        return [self.deviations, *self.biases.values()]

    def visited(self, tensors: Sequence[Tensor]) -> Embeddings:
        """Other rows of the same matrix, from their `tensors()`."""
        deviations, *biases = tensors
        return Embeddings(self.name, self.mean, deviations, dict(zip(self.biases, biases, strict=True)))


@dataclass(frozen=True)
class Pulled:
    """The gradient r [n, D] of patterns: an operand, and its products [n] with the mean of what was stored."""

    rows: Tensor
    along_mean: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.rows, self.along_mean]


def add_outer(matrix: Tensor, rows: Tensor, columns: Tensor) -> None:
    """matrix += rows columns^T, in place."""
    matrix.addcmul_(rows[:, None], columns[None, :])
