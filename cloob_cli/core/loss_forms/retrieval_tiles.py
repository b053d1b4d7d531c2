"""Retrieval with small scores, tile by tile: E = exp(scores) as it is (docs/loss.md, "Retrieval").

E enters the products as F = E - e f^T, where e and f are exp(biases) of the queries and of the stored: what its
elements have in common is added in full precision afterwards, by the caller (`Retrieval`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cloob_cli.core.loss_forms.operands import Embeddings, Pulled, add_outer
from cloob_cli.core.loss_forms.steps import Steps


def retrieve_in_tiles(
    queries: Embeddings,
    stored: Embeddings,
    beta: float,
    steps: Steps,
    for_queries: Tensor,
    for_stored: Tensor | None = None,
) -> None:
    """for_queries += F stored and, if given, for_stored += F^T queries.

    Where `queries` is `stored`, E is symmetric: one half of it is made.
    """
    symmetric = queries is stored
    row_bias, column_bias = queries.biases[stored.name], stored.biases[queries.name]
    row_sums, column_sums = torch.zeros_like(row_bias), torch.zeros_like(column_bias)
    if symmetric:
        for_stored = for_queries
    for i, j, mirrored in _tiles(steps.tile, len(queries), len(stored), symmetric):
        scores = steps.product("scores", queries.deviations[i], stored.deviations[j].T, beta)
        both = for_stored is not None and not mirrored
        weights = steps.exponentials(scores, row_bias[i], column_bias[j], row_sums[i], column_sums[j] if both else None)
        steps.add_product(for_queries[i], weights, stored.deviations[j])
        if for_stored is not None and both:
            steps.add_product(for_stored[j], weights.T, queries.deviations[i])
    # The deviations lack the mean.
    if symmetric:
        row_sums += column_sums
    elif for_stored is not None:
        add_outer(for_stored, column_sums, queries.mean)
    add_outer(for_queries, row_sums, stored.mean)


def pull_in_tiles(
    queries: Embeddings,
    stored: Embeddings,
    beta: float,
    steps: Steps,
    for_rows: Pulled,
    for_columns: Pulled | None,
    for_queries: Tensor,
    for_stored: Tensor,
) -> None:
    """The gradient of E stored and E^T queries, added to for_queries and for_stored, but for what F lacks.

    With G = E * (r_q S^T + Q r_s^T), elementwise: for Q it is beta G S + F r_s, for S beta G^T Q + F^T r_q.
    """
    symmetric = queries is stored
    row_bias, column_bias = queries.biases[stored.name], stored.biases[queries.name]
    row_sums, column_sums = torch.zeros_like(row_bias), torch.zeros_like(column_bias)
    for i, j, mirrored in _tiles(steps.tile, len(queries), len(stored), symmetric):
        scores = steps.product("scores", queries.deviations[i], stored.deviations[j].T, beta)
        change = steps.product("pulled", for_rows.rows[i], stored.deviations[j].T)
        if for_columns is not None:
            steps.add_product(change, queries.deviations[i], for_columns.rows[j].T)
        weights, gradient = steps.exponentials_and_gradient(
            scores,
            row_bias[i],
            column_bias[j],
            change,
            for_rows.along_mean[i],
            None if for_columns is None else for_columns.along_mean[j],
            row_sums[i],
            None if mirrored else column_sums[j],
        )
        steps.add_product(for_queries[i], gradient, stored.deviations[j], beta)
        if for_columns is not None:
            steps.add_product(for_queries[i], weights, for_columns.rows[j])
        if not mirrored:
            steps.add_product(for_stored[j], gradient.T, queries.deviations[i], beta)
            steps.add_product(for_stored[j], weights.T, for_rows.rows[i])
    # The deviations lack the mean.
    if symmetric:
        row_sums += column_sums
    else:
        add_outer(for_stored, beta * column_sums, queries.mean)
    add_outer(for_queries, beta * row_sums, stored.mean)


def _tiles(tile: tuple[int, int], rows: int, columns: int, symmetric: bool) -> Iterator[tuple[slice, slice, bool]]:
    """Rows, columns, and whether the tile is its own mirror image, of a score matrix.

    Of a symmetric one only the tiles on and above the diagonal: each also stands for its mirror image, but those on the
    diagonal are their own.
    """
    height, width = tile
    for top in range(0, rows, height):
        i = slice(top, min(top + height, rows))
        if symmetric:
            yield i, i, True
        for left in range(i.stop if symmetric else 0, columns, width):
            yield i, slice(left, min(left + width, columns)), False
