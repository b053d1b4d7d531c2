"""Retrieval of all four pattern matrices of CLOOB and its gradient, tile by tile (docs/loss.md, "Retrieval").

With E = exp(beta Q S^T), row i of A = E S points where softmax(beta q_i S^T) S points; only its length differs, and
that goes away in the normalisation. So no softmax is ever formed: the caller normalises A. What comes back from there,
r, is at right angles to A in every row, which is why the softmax's own correction term is zero here.

Embeddings enter the products as deviations from their mean, and E as F = E - 1: what they have in common is added in
full precision afterwards. Embeddings in a narrow cone, as at the start of training, would otherwise differ by less than
the rounding of what they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.core.gather import scatter_sum
from cloob_cli.core.loss_inputs import LossInputs
from cloob_cli.core.loss_steps import Steps

# Scores up to this size are exponentiated as they are, in tiles. exp(2 * 20) leaves room for sums over any batch, and
# the rounding of float32 times 20 stays below 1e-5. Larger ones need whole rows: maximum, sum and mean of a row.
LARGEST_TILED = {torch.float32: 20.0, torch.float64: 150.0}


@dataclass(frozen=True)
class _Embeddings:
    """Rows [N, D] as their mean [D] and their deviations from it, an operand.

    `biases` holds, by name, beta times the products [N] of the exact deviations with a mean: what the scores with other
    embeddings have on top of the product of deviations (a constant is left out, which no softmax sees).
    """

    name: str
    mean: Tensor
    deviations: Tensor
    biases: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.deviations)

    def __getitem__(self, rows: slice) -> _Embeddings:
        biases = {name: values[rows] for name, values in self.biases.items()}
        return _Embeddings(self.name, self.mean, self.deviations[rows], biases)


@dataclass(frozen=True)
class _Pulled:
    """The gradient r [n, D] of patterns: an operand, its products [n] with the stored mean, and its sum [D]."""

    rows: Tensor
    along_mean: Tensor
    total: Tensor


def small_scores(inputs: LossInputs, beta: float) -> bool:
    return beta * inputs.largest_norm**2 <= LARGEST_TILED[inputs.x.dtype]


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
        means = {"x": inputs.x.mean(dim=0), "y": inputs.y.mean(dim=0)}
        self.x, self.y = (self._embeddings(name, rows, means) for name, rows in (("x", inputs.x), ("y", inputs.y)))
        self.tiled = small_scores(inputs, beta)
        self.shared = self.tiled and self.layout.processes == 1

    def _embeddings(self, name: str, rows: Tensor, means: dict[str, Tensor]) -> _Embeddings:
        deviations = rows - means[name]
        biases = {other: self.beta * (deviations @ mean) for other, mean in means.items()}
        return _Embeddings(name, means[name], self.steps.operand(deviations), biases)

    def all_but_last(self) -> tuple[Tensor, Tensor, Tensor]:
        """U_x, U_y and V_x, [n, D] each, not normalised."""
        u_x, u_y, v_x = (self._zeros(self.x.deviations[self.layout.own]) for _ in range(3))
        if self.shared:
            self._retrieve_in_tiles(self.x, self.x, u_x)
            self._retrieve_in_tiles(self.x, self.y, v_x, u_y)
        else:
            self._retrieve(self.x, self.x, u_x)
            self._retrieve(self.y, self.x, u_y)
            self._retrieve(self.x, self.y, v_x)
        return u_x, u_y, v_x

    def last(self) -> Tensor:
        """V_y, by itself so that it need not wait in memory for its turn."""
        v_y = self._zeros(self.y.deviations[self.layout.own])
        self._retrieve(self.y, self.y, v_y)
        return v_y

    def _retrieve(self, queries: _Embeddings, stored: _Embeddings, patterns: Tensor) -> None:
        if self.shared:
            self._retrieve_in_tiles(queries, stored, patterns)
        elif self.tiled:
            self._retrieve_in_tiles(queries[self.layout.own], stored, patterns)
        else:
            self._retrieve_in_rows(queries[self.layout.own], stored, patterns)

    def pulled(self, gradient: Tensor, from_images: bool) -> _Pulled:
        """What `backward` takes for a pattern matrix: its gradient [n, D]; of U_x and U_y the stored are the images."""
        mean = self.x.mean if from_images else self.y.mean
        return _Pulled(self.steps.operand(gradient), gradient @ mean, gradient.sum(dim=0))

    def backward(self, r_u_x: _Pulled, r_u_y: _Pulled, r_v_x: _Pulled, r_v_y: _Pulled) -> tuple[Tensor, Tensor]:
        """The gradient for x and y [n, D] of this process's rows."""
        x, y, own = self.x, self.y, self.layout.own
        for_x, for_y = self._zeros(x.deviations), self._zeros(y.deviations)
        if self.shared:
            self._pull_in_tiles(x, x, r_u_x, r_u_x, for_x, for_x)
            self._pull_in_tiles(x, y, r_v_x, r_u_y, for_x, for_y)
            self._pull_in_tiles(y, y, r_v_y, r_v_y, for_y, for_y)
        elif self.tiled:
            self._pull_in_tiles(x[own], x, r_u_x, None, for_x[own], for_x)
            self._pull_in_tiles(y[own], x, r_u_y, None, for_y[own], for_x)
            self._pull_in_tiles(x[own], y, r_v_x, None, for_x[own], for_y)
            self._pull_in_tiles(y[own], y, r_v_y, None, for_y[own], for_y)
        else:
            self._pull_in_rows(x[own], x, r_u_x, for_x[own], for_x)
            self._pull_in_rows(y[own], x, r_u_y, for_y[own], for_x)
            self._pull_in_rows(x[own], y, r_v_x, for_x[own], for_y)
            self._pull_in_rows(y[own], y, r_v_y, for_y[own], for_y)
        return scatter_sum(for_x, self.layout), scatter_sum(for_y, self.layout)

    def _zeros(self, rows: Tensor) -> Tensor:
        return torch.zeros(rows.shape, dtype=self.steps.dtype, device=rows.device)

    def _retrieve_in_tiles(
        self, queries: _Embeddings, stored: _Embeddings, for_queries: Tensor, for_stored: Tensor | None = None
    ) -> None:
        """for_queries += E stored and, if given, for_stored += E^T queries."""
        steps, symmetric = self.steps, self.shared and queries is stored
        row_bias, column_bias = queries.biases[stored.name], stored.biases[queries.name]
        row_sums, column_sums = torch.zeros_like(row_bias), torch.zeros_like(column_bias)
        if symmetric:
            for_stored = for_queries
        for i, j, mirrored in self._tiles(len(queries), len(stored), symmetric):
            scores = steps.product("scores", queries.deviations[i], stored.deviations[j].T, self.beta)
            both = for_stored is not None and not mirrored
            weights = steps.exponentials(
                scores, row_bias[i], column_bias[j], row_sums[i], column_sums[j] if both else None
            )
            steps.add_product(for_queries[i], weights, stored.deviations[j])
            if for_stored is not None and both:
                steps.add_product(for_stored[j], weights.T, queries.deviations[i])
        # F lacks 1 everywhere, and the deviations lack the mean.
        if symmetric:
            row_sums += column_sums
        elif for_stored is not None:
            _add_outer(for_stored, column_sums + len(queries), queries.mean)
        _add_outer(for_queries, row_sums + len(stored), stored.mean)

    def _pull_in_tiles(
        self,
        queries: _Embeddings,
        stored: _Embeddings,
        for_rows: _Pulled,
        for_columns: _Pulled | None,
        for_queries: Tensor,
        for_stored: Tensor,
    ) -> None:
        """The gradient of `_retrieve_in_tiles`, added to for_queries and for_stored.

        With G = E * (r_q S^T + Q r_s^T), elementwise: for Q it is beta G S + E r_s, for S beta G^T Q + E^T r_q.
        """
        steps, symmetric = self.steps, self.shared and queries is stored
        row_bias, column_bias = queries.biases[stored.name], stored.biases[queries.name]
        row_sums, column_sums = torch.zeros_like(row_bias), torch.zeros_like(column_bias)
        for i, j, mirrored in self._tiles(len(queries), len(stored), symmetric):
            scores = steps.product("scores", queries.deviations[i], stored.deviations[j].T, self.beta)
            pulled = steps.product("pulled", for_rows.rows[i], stored.deviations[j].T)
            if for_columns is not None:
                steps.add_product(pulled, queries.deviations[i], for_columns.rows[j].T)
            weights, gradient = steps.exponentials_and_gradient(
                scores,
                row_bias[i],
                column_bias[j],
                pulled,
                for_rows.along_mean[i],
                None if for_columns is None else for_columns.along_mean[j],
                row_sums[i],
                None if mirrored else column_sums[j],
            )
            steps.add_product(for_queries[i], gradient, stored.deviations[j], self.beta)
            if for_columns is not None:
                steps.add_product(for_queries[i], weights, for_columns.rows[j])
            if not mirrored:
                steps.add_product(for_stored[j], gradient.T, queries.deviations[i], self.beta)
                steps.add_product(for_stored[j], weights.T, for_rows.rows[i])
        # As in _retrieve_in_tiles: what F and the deviations lack.
        if symmetric:
            row_sums += column_sums
        else:
            _add_outer(for_stored, self.beta * column_sums, queries.mean)
            for_stored += for_rows.total
        _add_outer(for_queries, self.beta * row_sums, stored.mean)
        if for_columns is not None:
            for_queries += for_columns.total

    def _tiles(self, rows: int, columns: int, symmetric: bool) -> Iterator[tuple[slice, slice, bool]]:
        """Rows, columns, and whether the tile is its own mirror image, of a score matrix.

        Of a symmetric one only the tiles on and above the diagonal: each also stands for its mirror image, but those on
        the diagonal are their own.
        """
        height, width = self.steps.tile
        for top in range(0, rows, height):
            i = slice(top, min(top + height, rows))
            if symmetric:
                yield i, i, True
            for left in range(i.stop if symmetric else 0, columns, width):
                yield i, slice(left, min(left + width, columns)), False

    def _retrieve_in_rows(self, queries: _Embeddings, stored: _Embeddings, for_queries: Tensor) -> None:
        """for_queries = E stored, each row of E divided by its largest element."""
        steps = self.steps
        for chunk in steps.chunks(len(queries), len(stored)):
            scores = steps.product("scores", queries.deviations[chunk], stored.deviations.T, self.beta)
            weights, row_sums = steps.exponentials_of_rows(scores, stored.biases[queries.name])
            steps.add_product(for_queries[chunk], weights, stored.deviations, keep=0)
            _add_outer(for_queries[chunk], row_sums.squeeze(1), stored.mean)

    def _pull_in_rows(
        self, queries: _Embeddings, stored: _Embeddings, pulled: _Pulled, for_queries: Tensor, for_stored: Tensor
    ) -> None:
        """The gradient of `_retrieve_in_rows`, added to for_queries and for_stored.

        The mean of r_q S^T under a row of the softmax is zero but for rounding. It is taken out all the same: large
        beta would make the rounding seen.
        """
        steps = self.steps
        column_sums = torch.zeros_like(stored.biases[queries.name])
        for chunk in steps.chunks(len(queries), len(stored)):
            scores = steps.product("scores", queries.deviations[chunk], stored.deviations.T, self.beta)
            change = steps.product("pulled", pulled.rows[chunk], stored.deviations.T)
            weights, gradient = steps.exponentials_and_gradient_of_rows(
                scores, stored.biases[queries.name], change, column_sums
            )
            steps.add_product(for_queries[chunk], gradient, stored.deviations, self.beta)
            steps.add_product(for_stored, gradient.T, queries.deviations[chunk], self.beta)
            steps.add_product(for_stored, weights.T, pulled.rows[chunk])
        _add_outer(for_stored, self.beta * column_sums, queries.mean)


def _add_outer(matrix: Tensor, rows: Tensor, columns: Tensor) -> None:
    """matrix += rows columns^T, in place."""
    matrix.addcmul_(rows[:, None], columns[None, :])
