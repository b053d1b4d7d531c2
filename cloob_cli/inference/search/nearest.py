"""The rows of an array with the largest cosine to a query, found by comparing all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from cloob_cli.inference.index.row_parts import RowParts

_BLOCK = 1 << 25  # bytes of rows that are compared at a time


class Hit(NamedTuple):
    """A row's number and its cosine to the query."""

    row: int
    score: float


def nearest(rows: np.ndarray | RowParts, query: np.ndarray, top: int, min_score: float | None = None) -> list[Hit]:
    """The `top` rows with the largest cosine, best first; of equal ones the earlier row.

    Args:
        rows: unit-norm [N, D], float32 or float16; they may be mapped from a file, and are read in blocks.
        query: unit-norm float32 [D].
        min_score: rows with a smaller cosine are left out, and always those whose cosine is no finite number.
    """
    numbers, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    size = max(1, _BLOCK // max(rows.shape[1] * 4, 1))
    for start in range(0, len(rows), size):
        with np.errstate(invalid="ignore", over="ignore"):
            found = np.asarray(rows[start : start + size], np.float32) @ query
        found[~np.isfinite(found)] = -np.inf  # rows of other programs may hold anything; such a row is near to nothing
        kept = np.arange(len(found)) if len(found) <= top else np.argpartition(-found, top - 1)[:top]
        # All that equal the last of them: which of equal rows a partition takes is left to chance.
        kept = np.flatnonzero(found >= found[kept].min()) if len(kept) else kept
        numbers, scores = np.concatenate([numbers, kept + start]), np.concatenate([scores, found[kept]])
        order = np.lexsort((numbers, -scores))[:top]
        numbers, scores = numbers[order], scores[order]
    hits = (Hit(int(number), float(score)) for number, score in zip(numbers, scores, strict=True))
    return [hit for hit in hits if np.isfinite(hit.score) and (min_score is None or hit.score >= min_score)]


def nearest_of_each(rows: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """The numbers, int64 [Q, top], of the rows with the largest cosines to each of some queries, in no order.

    Args:
        rows: unit-norm [N, D], N at least `top`.
        queries: unit-norm float32 [Q, D].
    """
    numbers, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    size = max(1, _BLOCK // max(rows.shape[1] * 4, 1))
    for start in range(0, len(rows), size):
        found = queries @ np.asarray(rows[start : start + size], np.float32).T
        here = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
        numbers, scores = np.concatenate([numbers, here], axis=1), np.concatenate([scores, found], axis=1)
        if scores.shape[1] > top:
            kept = np.argpartition(-scores, top - 1, axis=1)[:, :top]
            numbers = np.take_along_axis(numbers, kept, axis=1)
            scores = np.take_along_axis(scores, kept, axis=1)
    return numbers
