"""The geometry of embeddings on the sphere: spectrum, alignment, uniformity, Ajne's statistic, the modality gap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 2048  # rows of the scores of all pairs that are held at a time


def covariance_spectrum(embeddings: Tensor) -> Tensor:
    """The eigenvalues of the covariance of embeddings [N, D], float64 [D], the largest first."""
    centered = embeddings.double() - embeddings.double().mean(dim=0)
    eigenvalues: Tensor = torch.linalg.eigvalsh(centered.T @ centered / max(len(embeddings), 1))
    return eigenvalues.flip(0).clamp(min=0)


def directions_for(eigenvalues: Tensor, fraction: float = 0.99) -> int:
    """The number of eigenvalues, the largest first, that make up `fraction` of their sum."""
    explained = eigenvalues.cumsum(0) / eigenvalues.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return min(len(eigenvalues), int((explained < fraction).sum()) + 1)


def covariance_rank(embeddings: Tensor, fraction: float = 0.99) -> int:
    """The number of eigenvalues of the covariance of embeddings [N, D] that make up `fraction` of the variance.

    It measures how many directions of the space are in use; the CLOOB paper (Fürst et al. 2022, section 4.2)
    compares models by it.
    """
    return directions_for(covariance_spectrum(embeddings), fraction)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues' shares (Roy and Vetterli 2007): equal ones count fully."""
    return float(torch.exp(torch.special.entr(eigenvalues / eigenvalues.sum().clamp(min=1e-300)).sum()))


def alignment(images: Tensor, texts: Tensor) -> float:
    """The mean squared distance of the two embeddings of a pair (Wang and Isola 2020, with alpha = 2).

    Args:
        images, texts: unit-norm [N, D]; row i of each belongs to pair i.
    """
    return float((images.double() - texts.double()).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t · squared distance) over all pairs of different rows (Wang and Isola 2020).

    Lower is more uniform; 0 where all rows are equal.

    Args:
        embeddings: unit-norm [N, D], N at least 2.
    """
    count, total = len(embeddings), 0.0
    for rows in torch.arange(count).split(_ROWS):
        squared = 2 - 2 * _cosines(embeddings, rows)
        total += float(torch.exp(-t * squared).sum())
    return math.log((total - count) / (count * (count - 1)))  # a row has distance 0 from itself


def ajne(embeddings: Tensor) -> float:
    """Ajne's statistic of uniformity on the sphere (Ajne 1968, on the circle; Prentice 1978, on any sphere).

    A = N / 4 - 1 / (pi N) · sum over pairs i < j of the angle between rows i and j. About 1/4 for rows that are spread
    uniformly, N / 4 where all are equal: it grows with N, so only sets of one size can be compared.

    Args:
        embeddings: unit-norm [N, D], N at least 2.
    """
    count, angles = len(embeddings), 0.0
    for rows in torch.arange(count).split(_ROWS):
        cosines = _cosines(embeddings, rows)
        cosines[torch.arange(len(rows)), rows] = 1.0  # rounding would give a row an angle with itself
        angles += float(torch.acos(cosines).sum())
    return count / 4 - angles / 2 / (math.pi * count)


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """The distance between the mean image embedding and the mean text embedding (Liang et al. 2022)."""
    return float((images.double().mean(dim=0) - texts.double().mean(dim=0)).norm())


def _cosines(embeddings: Tensor, rows: Tensor) -> Tensor:
    """float64 [rows, N], in [-1, 1]. The sums of many nearly equal angles need the precision."""
    return (embeddings[rows].double() @ embeddings.double().T).clamp(-1, 1)
