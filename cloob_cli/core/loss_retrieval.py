"""Retrieval of all four pattern matrices of CLOOB and its gradient, tile by tile (docs/loss.md, "Retrieval").

With E = exp(beta Q S^T), row i of A = E S points where softmax(beta q_i S^T) S points; only its length differs, and that
goes away in the normalisation. So no softmax is ever formed: the caller normalises A. What comes back from there, r, is
at right angles to A in every row, which is why the softmax's own correction term is zero here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cloob_cli.core.gather import scatter_sum
from cloob_cli.core.loss_inputs import LossInputs
from cloob_cli.core.loss_steps import Steps

# Scores up to this size are exponentiated as they are: exp(40) leaves float32 (exp(300): float64) room for sums over
# any batch. Larger ones are shifted by the maximum of their row.
LARGEST_UNSHIFTED = {torch.float32: 40.0, torch.float64: 300.0}


class Retrieval:
    """U_x, U_y retrieved from the images with X and Y, and V_x, V_y from the texts, for this process's rows.

    E is the same matrix for the queries Q that look into S and for the queries S that look into Q. On one process and
    without shifts it is made once for both: one half of X X^T and of Y Y^T, and X Y^T, instead of four whole matrices.
    """

    def __init__(self, inputs: LossInputs, beta: float, steps: Steps) -> None:
        self.layout = inputs.layout
        self.beta = beta
        self.steps = steps
        self.x, self.y = steps.operand(inputs.x), steps.operand(inputs.y)
        shifted = beta * inputs.largest_norm**2 > LARGEST_UNSHIFTED[steps.dtype]
        self.shared = self.layout.processes == 1 and not shifted
        own = self.layout.own
        # (queries, stored) of U_x, U_y, V_x, V_y
        self.pairs = [(queries[own], stored) for stored in (self.x, self.y) for queries in (self.x, self.y)]
        self.row_maxima = [
            inputs.x.new_full((len(queries), 1), -torch.inf) if shifted else None for queries, _ in self.pairs
        ]

    def forward(self) -> list[Tensor]:
        """[U_x, U_y, V_x, V_y], each [n, D], not normalised."""
        patterns = [
            torch.zeros(*queries.shape, dtype=self.steps.dtype, device=queries.device) for queries, _ in self.pairs
        ]
        if self.shared:
            self._retrieve(self.x, self.x, patterns[0], patterns[0])
            self._retrieve(self.x, self.y, patterns[2], patterns[1])
            self._retrieve(self.y, self.y, patterns[3], patterns[3])
        else:
            for (queries, stored), pattern, maxima in zip(self.pairs, patterns, self.row_maxima, strict=True):
                self._retrieve(queries, stored, pattern, row_maxima=maxima)
        return patterns

    def backward(self, pulled: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient for x and y [n, D] of this process's rows, given that of the four patterns (operands)."""
        for_x, for_y = (
            torch.zeros(*rows.shape, dtype=self.steps.dtype, device=rows.device) for rows in (self.x, self.y)
        )
        if self.shared:
            self._pull(self.x, self.x, pulled[0], pulled[0], for_x, for_x)
            self._pull(self.x, self.y, pulled[2], pulled[1], for_x, for_y)
            self._pull(self.y, self.y, pulled[3], pulled[3], for_y, for_y)
        else:
            own = self.layout.own
            gradients = [(queries[own], stored) for stored in (for_x, for_y) for queries in (for_x, for_y)]
            for pair, pull, into, maxima in zip(self.pairs, pulled, gradients, self.row_maxima, strict=True):
                self._pull(*pair, pull, None, *into, row_maxima=maxima)
        return scatter_sum(for_x, self.layout), scatter_sum(for_y, self.layout)

    def _retrieve(
        self,
        queries: Tensor,
        stored: Tensor,
        for_queries: Tensor,
        for_stored: Tensor | None = None,
        row_maxima: Tensor | None = None,
    ) -> None:
        """for_queries += E stored and, if given, for_stored += E^T queries."""
        steps = self.steps
        for i, j, mirrored in self._tiles(queries, stored):
            scores = steps.product("scores", queries[i], stored[j].T, self.beta)
            if row_maxima is not None:
                largest = torch.maximum(row_maxima[i], scores.amax(dim=1, keepdim=True))
                for_queries[i].mul_((row_maxima[i] - largest).exp_())
                row_maxima[i] = largest
                scores.sub_(largest)
            weights = steps.exponentials(scores)
            steps.add_product(for_queries[i], weights, stored[j])
            if for_stored is not None and not mirrored:
                steps.add_product(for_stored[j], weights.T, queries[i])

    def _pull(
        self,
        queries: Tensor,
        stored: Tensor,
        pulled_queries: Tensor,
        pulled_stored: Tensor | None,
        for_queries: Tensor,
        for_stored: Tensor,
        row_maxima: Tensor | None = None,
    ) -> None:
        """The gradient of `_retrieve`, added to for_queries and for_stored.

        With G = E * (r_q S^T + Q r_s^T), elementwise: for Q it is beta G S + E r_s, for S beta G^T Q + E^T r_q.
        """
        steps = self.steps
        for i, j, mirrored in self._tiles(queries, stored):
            scores = steps.product("scores", queries[i], stored[j].T, self.beta)
            if row_maxima is not None:
                scores.sub_(row_maxima[i])
            pulled = steps.product("pulled", pulled_queries[i], stored[j].T)
            if pulled_stored is not None:
                steps.add_product(pulled, queries[i], pulled_stored[j].T)
            weights, gradient = steps.exponentials_and_gradient(scores, pulled)
            steps.add_product(for_queries[i], gradient, stored[j], self.beta)
            if pulled_stored is not None:
                steps.add_product(for_queries[i], weights, pulled_stored[j])
            if not mirrored:
                steps.add_product(for_stored[j], gradient.T, queries[i], self.beta)
                steps.add_product(for_stored[j], weights.T, pulled_queries[i])

    def _tiles(self, queries: Tensor, stored: Tensor) -> Iterator[tuple[slice, slice, bool]]:
        """Rows, columns, and whether the tile is its own mirror image, of a score matrix.

        Of a symmetric one shared by both directions only the tiles on and above the diagonal: each also stands for its
        mirror image, but those on the diagonal are their own.
        """
        symmetric = self.shared and queries is stored
        height, width = self.steps.tile
        for top in range(0, len(queries), height):
            rows = slice(top, min(top + height, len(queries)))
            if symmetric:
                yield rows, rows, True
            for left in range(rows.stop if symmetric else 0, len(stored), width):
                yield rows, slice(left, min(left + width, len(stored))), False
