"""Retrieval with scores that cannot be exponentiated as they are: the maximum of each row is taken out.

It is a rare case, so plain torch serves everywhere and nothing is shared between directions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cloob_cli.core.loss_forms.operands import Embeddings, Pulled, add_outer
from cloob_cli.core.loss_forms.steps import Steps


def retrieve_rows(
    queries: Embeddings, stored: Embeddings, beta: float, steps: Steps, for_queries: Tensor, largest: Tensor
) -> None:
    """for_queries += E stored with E = exp(scores - largest), where `largest` [n, 1] is the largest score of each row
    so far: it grows in place, and what for_queries holds already is scaled down with it.
    """
    for chunk in steps.chunks(len(queries), len(stored)):
        scores = _scores(queries, stored, beta, steps, chunk)
        before = largest[chunk].clone()
        torch.maximum(before, scores.amax(dim=1, keepdim=True), out=largest[chunk])
        weights = scores.sub_(largest[chunk]).exp_()
        row_sums = weights.sum(dim=1)
        for_queries[chunk].mul_((before - largest[chunk]).exp_())
        steps.add_product(for_queries[chunk], steps.operand(weights), stored.deviations)
        add_outer(for_queries[chunk], row_sums, stored.mean)


def add_to_row_means(
    queries: Embeddings,
    stored: Embeddings,
    beta: float,
    steps: Steps,
    for_rows: Pulled,
    largest: Tensor,
    sums: Tensor,
    lengths: Tensor,
) -> None:
    """sums += the row sums [n, 1] of E * (r S^T), lengths += those of E: their ratio is what `pull_rows` takes out."""
    for chunk, weights, change in _weights_and_changes(queries, stored, beta, steps, for_rows, largest):
        sums[chunk].add_(torch.linalg.vecdot(weights, change).unsqueeze(1))
        lengths[chunk].add_(weights.sum(dim=1, keepdim=True))


def pull_rows(
    queries: Embeddings,
    stored: Embeddings,
    beta: float,
    steps: Steps,
    for_rows: Pulled,
    largest: Tensor,
    row_means: Tensor | None,
    for_queries: Tensor,
    for_stored: Tensor,
) -> None:
    """The gradient of `retrieve_rows`, added to for_queries and for_stored.

    The mean of r S^T under a row of the softmax is zero but for rounding. It is taken out all the same: large beta
    would make the rounding seen. `row_means` [n, 1] are these means; None: `stored` are all there are, so that they are
    found here.
    """
    column_sums = torch.zeros_like(stored.biases[queries.name])
    for chunk, weights, change in _weights_and_changes(queries, stored, beta, steps, for_rows, largest):
        if row_means is None:
            mean = torch.linalg.vecdot(weights, change).unsqueeze(1) / weights.sum(dim=1, keepdim=True)
        else:
            mean = row_means[chunk]
        gradient = change.sub_(mean).mul_(weights)
        column_sums += gradient.sum(dim=0)
        weights, gradient = steps.operand(weights), steps.operand(gradient)
        steps.add_product(for_queries[chunk], gradient, stored.deviations, beta)
        steps.add_product(for_stored, gradient.T, queries.deviations[chunk], beta)
        steps.add_product(for_stored, weights.T, for_rows.rows[chunk])
    add_outer(for_stored, beta * column_sums, queries.mean)


def _weights_and_changes(
    queries: Embeddings, stored: Embeddings, beta: float, steps: Steps, for_rows: Pulled, largest: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Each chunk of rows with its E = exp(scores - largest) and its r S^T."""
    for chunk in steps.chunks(len(queries), len(stored)):
        weights = _scores(queries, stored, beta, steps, chunk).sub_(largest[chunk]).exp_()
        yield chunk, weights, steps.product("pulled", for_rows.rows[chunk], stored.deviations.T)


def _scores(queries: Embeddings, stored: Embeddings, beta: float, steps: Steps, chunk: slice) -> Tensor:
    """Scores of a chunk of rows, up to a constant a row."""
    scores = steps.product("scores", queries.deviations[chunk], stored.deviations.T, beta)
    return scores.add_(stored.biases[queries.name])
