"""Rows that large cosines connect, found tile by tile: memory grows with the rows, and not with their pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_TILE = 2048  # rows and columns of cosines that are computed at a time


def connected_rows(
    rows: np.ndarray, chosen: np.ndarray, least: float, on_tile: Callable[[int, int], None] | None = None
) -> Iterator[np.ndarray]:
    """Yield places in `chosen` whose rows a chain of cosines of at least `least` connects, at least two each time.

    Args:
        rows: unit-norm [N, D], float32 or float16; they may be mapped from a file.
        chosen: int [M], the rows to compare.
        on_tile: called with the tiles done and their number.
    """
    parents = np.arange(len(chosen))
    starts = range(0, len(chosen), _TILE)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for first in starts:
        across = np.asarray(rows[chosen[first : first + _TILE]], np.float32)
        for second in range(first, len(chosen), _TILE):
            down = np.asarray(rows[chosen[second : second + _TILE]], np.float32)
            one, other = np.nonzero(across @ down.T >= least)
            one, other = one + first, other + second
            _connect(parents, one[one < other], other[one < other])
            done += 1
            if on_tile:
                on_tile(done, total)
    roots = _roots(parents)
    order = np.argsort(roots, kind="stable")
    borders = np.flatnonzero(np.diff(roots[order])) + 1
    for members in np.split(order, borders):
        if len(members) > 1:
            yield members


def _connect(parents: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Give the rows of all pairs one root, the smallest; pairs that have one already cost no step."""
    while len(one):
        roots = _roots(parents)
        low, high = np.minimum(roots[one], roots[other]), np.maximum(roots[one], roots[other])
        apart = low != high
        one, other, low, high = one[apart], other[apart], low[apart], high[apart]
        np.minimum.at(parents, high, low)


def _roots(parents: np.ndarray) -> np.ndarray:
    while True:
        further = parents[parents]
        if np.array_equal(further, parents):
            return parents
        parents[:] = further
