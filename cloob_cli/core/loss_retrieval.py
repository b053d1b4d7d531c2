"""Retrieval of all four pattern matrices of CLOOB and its gradient, tile by tile (docs/loss.md, "Retrieval").

With E = exp(beta Q S^T), row i of A = E S points where softmax(beta q_i S^T) S points; only its length differs, and
that goes away in the normalisation. So no softmax is ever formed: the caller normalises A. What comes back from there,
r, is at right angles to A in every row, which is why the softmax's own correction term is zero here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cloob_cli.core.gather import scatter_sum
from cloob_cli.core.loss_inputs import LossInputs
from cloob_cli.core.loss_steps import Steps

# Scores up to this size are exponentiated as they are, in tiles. exp(20) leaves room for sums over any batch, and the
# rounding of float32 times 20 stays below 1e-5. Larger ones need whole rows: maximum, sum and mean gradient of a row.
LARGEST_TILED = {torch.float32: 20.0, torch.float64: 200.0}


class Retrieval:
    """U_x, U_y retrieved from the images with X and Y, and V_x, V_y from the texts, for this process's rows.

    E is the same matrix for the queries Q that look into S and for the queries S that look into Q. On one process it is
    made once for both: one half of X X^T and of Y Y^T, and X Y^T, instead of four whole matrices. Several processes
    hold only rows of it, and large scores ask for whole rows: then each of the four is made by itself.
    """

    def __init__(self, inputs: LossInputs, beta: float, steps: Steps) -> None:
        self.layout = inputs.layout
        self.beta = beta
        self.steps = steps
        self.x, self.y = steps.operand(inputs.x), steps.operand(inputs.y)
        self.shared = self.layout.processes == 1 and beta * inputs.largest_norm**2 <= LARGEST_TILED[steps.dtype]

    def forward(self) -> list[Tensor]:
        """[U_x, U_y, V_x, V_y], each [n, D], not normalised."""
        x, y, own = self.x, self.y, self.layout.own
        u_x, u_y, v_x, v_y = (self._zeros(rows[own]) for rows in (x, y, x, y))
        if self.shared:
            self._retrieve_both(x, x, u_x, u_x)
            self._retrieve_both(x, y, v_x, u_y)
            self._retrieve_both(y, y, v_y, v_y)
        else:
            for queries, stored, pattern in ((x, x, u_x), (y, x, u_y), (x, y, v_x), (y, y, v_y)):
                self._retrieve(queries[own], stored, pattern)
        return [u_x, u_y, v_x, v_y]

    def backward(self, pulled: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient for x and y [n, D] of this process's rows, given that of the four patterns (operands)."""
        x, y, own = self.x, self.y, self.layout.own
        for_x, for_y = self._zeros(x), self._zeros(y)
        r_u_x, r_u_y, r_v_x, r_v_y = pulled
        if self.shared:
            self._pull_both(x, x, r_u_x, r_u_x, for_x, for_x)
            self._pull_both(x, y, r_v_x, r_u_y, for_x, for_y)
            self._pull_both(y, y, r_v_y, r_v_y, for_y, for_y)
        else:
            self._pull(x[own], x, r_u_x, for_x[own], for_x)
            self._pull(y[own], x, r_u_y, for_y[own], for_x)
            self._pull(x[own], y, r_v_x, for_x[own], for_y)
            self._pull(y[own], y, r_v_y, for_y[own], for_y)
        return scatter_sum(for_x, self.layout), scatter_sum(for_y, self.layout)

    def _zeros(self, rows: Tensor) -> Tensor:
        return torch.zeros(rows.shape, dtype=self.steps.dtype, device=rows.device)

    def _retrieve_both(self, queries: Tensor, stored: Tensor, for_queries: Tensor, for_stored: Tensor) -> None:
        """for_queries += E stored, for_stored += E^T queries; only the first of them where both are the same."""
        steps = self.steps
        for i, j, mirrored in self._tiles(queries, stored):
            weights = steps.exponentials(steps.product("scores", queries[i], stored[j].T, self.beta))
            steps.add_product(for_queries[i], weights, stored[j])
            if not mirrored:
                steps.add_product(for_stored[j], weights.T, queries[i])

    def _pull_both(
        self,
        queries: Tensor,
        stored: Tensor,
        pulled_queries: Tensor,
        pulled_stored: Tensor,
        for_queries: Tensor,
        for_stored: Tensor,
    ) -> None:
        """The gradient of `_retrieve_both`, added to for_queries and for_stored.

        With G = E * (r_q S^T + Q r_s^T), elementwise: for Q it is beta G S + E r_s, for S beta G^T Q + E^T r_q.
        """
        steps = self.steps
        for i, j, mirrored in self._tiles(queries, stored):
            scores = steps.product("scores", queries[i], stored[j].T, self.beta)
            pulled = steps.product("pulled", pulled_queries[i], stored[j].T)
            steps.add_product(pulled, queries[i], pulled_stored[j].T)
            weights, gradient = steps.exponentials_and_gradient(scores, pulled)
            steps.add_product(for_queries[i], gradient, stored[j], self.beta)
            steps.add_product(for_queries[i], weights, pulled_stored[j])
            if not mirrored:
                steps.add_product(for_stored[j], gradient.T, queries[i], self.beta)
                steps.add_product(for_stored[j], weights.T, pulled_queries[i])

    def _tiles(self, queries: Tensor, stored: Tensor) -> Iterator[tuple[slice, slice, bool]]:
        """Rows, columns, and whether the tile is its own mirror image, of a score matrix.

        Of a symmetric one only the tiles on and above the diagonal: each also stands for its mirror image, but those on
        the diagonal are their own.
        """
        symmetric = queries is stored
        height, width = self.steps.tile
        for top in range(0, len(queries), height):
            rows = slice(top, min(top + height, len(queries)))
            if symmetric:
                yield rows, rows, True
            for left in range(rows.stop if symmetric else 0, len(stored), width):
                yield rows, slice(left, min(left + width, len(stored))), False

    def _retrieve(self, queries: Tensor, stored: Tensor, for_queries: Tensor) -> None:
        """for_queries = E stored, each row of E divided by its largest element."""
        steps = self.steps
        for chunk in steps.chunks(len(queries), len(stored)):
            scores = steps.product("scores", queries[chunk], stored.T, self.beta)
            weights = steps.exponentials_of_rows(scores)
            steps.add_product(for_queries[chunk], weights, stored, keep=0)

    def _pull(self, queries: Tensor, stored: Tensor, pulled: Tensor, for_queries: Tensor, for_stored: Tensor) -> None:
        """The gradient of `_retrieve`, added to for_queries and for_stored.

        The mean of r_q S^T under a row of the softmax is zero but for rounding. It is taken out all the same: large
        beta would make the rounding seen.
        """
        steps = self.steps
        for chunk in steps.chunks(len(queries), len(stored)):
            scores = steps.product("scores", queries[chunk], stored.T, self.beta)
            change = steps.product("pulled", pulled[chunk], stored.T)
            weights, gradient = steps.exponentials_and_gradient_of_rows(scores, change)
            steps.add_product(for_queries[chunk], gradient, stored, self.beta)
            steps.add_product(for_stored, gradient.T, queries[chunk], self.beta)
            steps.add_product(for_stored, weights.T, pulled[chunk])
