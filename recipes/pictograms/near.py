"""Perceptual hashes of drawings, and how near each drawing of one list is to any of another.

The hash of a drawing is its gray values in 12 x 12 cells, after it was cut to its edges and fitted into a square:
neither margins and scale nor the colors of a one-color drawing hide a copy. The distance of two hashes is one less
their correlation, so contrast does not count either: 0 is the same drawing, 1 one that has nothing in common. Hashes of
single bits tell icons apart badly (README.md has numbers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELLS = 12
_TILE = 2048
_STEPS = 1024  # the values that are multiplied are whole numbers, so that sums do not depend on their order

Hashes = NDArray[np.uint8]


def perceptual_hash(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The hash [CELLS * CELLS] of a drawing.

    Args:
        ink: [H, W], 0 where there is nothing, 255 where it is black.
    """
    rows, columns = (np.flatnonzero((ink > 24).any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        return np.zeros(CELLS * CELLS, np.uint8)
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return np.asarray(Image.fromarray(square).resize((CELLS, CELLS), Image.Resampling.BOX)).ravel()


def ink_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The distance from white of each of the RGB pixels [H, W, 3], as [H, W]."""
    gray: NDArray[np.int64] = (rgb.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000
    return (255 - gray).astype(np.uint8)


def least_distances(hashes: Hashes, references: Hashes) -> NDArray[np.float64]:
    """For each hash [N, CELLS * CELLS] the least distance to a reference, at most 2; 2 where there is none."""
    least = np.full(len(hashes), 2.0)
    if len(references) == 0:
        return least
    others = _directions(references).T
    for start in range(0, len(hashes), _TILE):
        alike = _directions(hashes[start : start + _TILE]) @ others
        least[start : start + _TILE] = 1 - alike.max(axis=1) / _STEPS**2
    return least


def _directions(hashes: Hashes) -> NDArray[np.float64]:
    """Hashes less their mean, as vectors of length `_STEPS` of whole numbers (in floats, which multiply faster).

    A hash of one value throughout, of a drawing that fills its square, becomes a vector that is like its kind only.
    """
    values = hashes.astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    length = np.sqrt((values * values).sum(axis=1, keepdims=True))
    flat = np.full(hashes.shape[1], 1 / CELLS)
    directions: NDArray[np.float64] = np.rint(
        _STEPS * np.where(length > 0, values / np.where(length > 0, length, 1), flat)
    )
    return directions
