"""Retrieval of all four pattern matrices of CLOOB and its gradient, for the rows of one process (docs/loss.md).

With E = exp(beta Q S^T), row i of A = E S points where softmax(beta q_i S^T) S points; only its length differs, and
that goes away in the normalization. So no softmax is ever formed: the caller normalizes A. What comes back from there,
r, is at right angles to A in every row, which is why the softmax's own correction term is zero here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cloob_cli.core.exchange import Visit, visits
from cloob_cli.core.gather import mean_of_rows, sum_over_processes
from cloob_cli.core.loss_forms.inputs import LossInputs
from cloob_cli.core.loss_forms.operands import Embeddings, Pulled, add_outer
from cloob_cli.core.loss_forms.retrieval_common import LOWEST_MEAN, find_common, small_scores
from cloob_cli.core.loss_forms.retrieval_rows import add_to_row_means, pull_rows, retrieve_rows
from cloob_cli.core.loss_forms.retrieval_tiles import pull_in_tiles, retrieve_in_tiles
from cloob_cli.core.loss_forms.steps import Steps

# The pattern matrices: with which queries they are retrieved from which stored embeddings.
PATTERNS = {"u_x": ("x", "x"), "u_y": ("y", "x"), "v_x": ("x", "y"), "v_y": ("y", "y")}


class Retrieval:
    """U_x, U_y retrieved from the images with X and Y, and V_x, V_y from the texts.

    E is the same matrix for the queries Q that look into S and for the queries S that look into Q. So X Y^T is made
    once, for V_x by its rows and for U_y by its columns; of X X^T and Y Y^T one half is made where both sides are a
    process's own rows. Where scores are large or far apart, each of the four is made by itself.
    """

    def __init__(self, inputs: LossInputs, beta: float, steps: Steps) -> None:
        self.inputs = inputs
        self.beta = beta
        self.steps = steps
        rows = {"x": inputs.x, "y": inputs.y}
        self.means = {name: mean_of_rows(matrix, inputs.layout) for name, matrix in rows.items()}
        deviations = {name: rows[name] - mean for name, mean in self.means.items()}
        scaled_means = {name: beta * mean for name, mean in self.means.items()}
        self._biases = {
            name: {other: torch.mv(matrix, mean) for other, mean in scaled_means.items()}
            for name, matrix in deviations.items()
        }
        common = None
        if small_scores(inputs, beta):
            common = find_common(deviations, self.means, self._biases, beta, inputs.layout)
        self._common = common if common and common.lowest > LOWEST_MEAN[inputs.x.dtype] else None  # None: not in tiles
        self._kept: dict[str, Embeddings] = {}
        self._largest: dict[str, Tensor] = {}  # the largest score of each row [n, 1], by pattern matrix
        self._totals: dict[str, Tensor] = {}  # e^T r [D] of this process's rows, by pattern matrix

    def all_but_last(self) -> dict[str, Tensor]:
        """U_x, U_y and V_x by name, [n, D] each, not normalized."""
        patterns = {name: self._zeros() for name in ("u_x", "u_y", "v_x")}
        own = self._own_embeddings("x", "y")
        if self._common is None:
            self._retrieve_rows(own, patterns)
            return patterns
        for visit, stored, _ in self._visits(own, [patterns["u_y"]]):
            self._in_tiles(own["x"], stored["x"], patterns["u_x"])
            self._in_tiles(own["x"], stored["y"], patterns["v_x"], visit.sums[0])
        self._add_common(patterns)
        return patterns

    def last(self) -> Tensor:
        """V_y, by itself so that it need not wait in memory for its turn."""
        v_y, own = self._zeros(), self._own_embeddings("y")
        if self._common is None:
            self._retrieve_rows(own, {"v_y": v_y})
            return v_y
        for _, stored, _ in self._visits(own):
            self._in_tiles(own["y"], stored["y"], v_y)
        self._add_common({"v_y": v_y})
        return v_y

    def pulled(self, pattern: str, gradient: Tensor) -> Pulled:
        """What `backward` takes for the pattern matrix of that name: its gradient [n, D]."""
        query, stored = PATTERNS[pattern]
        if self._common:
            self._totals[pattern] = self._common.factors[query, stored] @ gradient
        return Pulled(self.steps.operand(gradient), gradient @ self.means[stored])

    def backward(self, gradients: dict[str, Pulled]) -> tuple[Tensor, Tensor]:
        """The gradient for x and y [n, D] from that of all four pattern matrices."""
        own = self._own_embeddings("x", "y")
        for_own = {"x": self._zeros(), "y": self._zeros()}
        if self._common is None:
            self._pull_rows(own, gradients, for_own)
            return for_own["x"], for_own["y"]
        u_x, u_y, v_x, v_y = (gradients[name] for name in PATTERNS)
        for visit, stored, (their_u_y,) in self._visits(own, list(for_own.values()), [u_y]):
            for_stored_x, for_stored_y = visit.sums
            for query, kind, by_row, by_column, for_stored in (
                ("x", "x", u_x, u_x if visit.own else None, for_stored_x),
                ("x", "y", v_x, their_u_y, for_stored_y),
                ("y", "y", v_y, v_y if visit.own else None, for_stored_y),
            ):
                pull_in_tiles(
                    own[query], stored[kind], self.beta, self.steps, by_row, by_column, for_own[query], for_stored
                )
        # E^T r = F^T r + f (e^T r)
        totals = sum_over_processes(torch.stack([self._totals[name] for name in PATTERNS]), self.inputs.layout)
        for (query, kind), total in zip(PATTERNS.values(), totals, strict=True):
            add_outer(for_own[kind], self._common.factors[kind, query], total)
        return for_own["x"], for_own["y"]

    def _add_common(self, patterns: dict[str, Tensor]) -> None:
        """E S = F S + e (f^T S)"""
        assert self._common
        for name, rows in patterns.items():
            query, kind = PATTERNS[name]
            add_outer(rows, self._common.factors[query, kind], self._common.sums[kind, query])

    def _in_tiles(
        self, queries: Embeddings, stored: Embeddings, for_queries: Tensor, for_stored: Tensor | None = None
    ) -> None:
        retrieve_in_tiles(queries, stored, self.beta, self.steps, for_queries, for_stored)

    def _retrieve_rows(self, own: dict[str, Embeddings], patterns: dict[str, Tensor]) -> None:
        for name, rows in patterns.items():
            self._largest[name] = rows.new_full((len(rows), 1), -torch.inf)
        for _, stored, _ in self._visits(own):
            for name, rows in patterns.items():
                query, kind = PATTERNS[name]
                retrieve_rows(own[query], stored[kind], self.beta, self.steps, rows, self._largest[name])

    def _pull_rows(self, own: dict[str, Embeddings], gradients: dict[str, Pulled], for_own: dict[str, Tensor]) -> None:
        # On one process a chunk holds whole rows and so their means; else all blocks have to be seen first.
        means = {} if self.inputs.layout.processes == 1 else self._row_means(own, gradients)
        for visit, stored, _ in self._visits(own, list(for_own.values())):
            for_stored = dict(zip(for_own, visit.sums, strict=True))
            for name, (query, kind) in PATTERNS.items():
                pull_rows(
                    own[query],
                    stored[kind],
                    self.beta,
                    self.steps,
                    gradients[name],
                    self._largest[name],
                    means.get(name),
                    for_own[query],
                    for_stored[kind],
                )

    def _row_means(self, own: dict[str, Embeddings], gradients: dict[str, Pulled]) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(rows) for name, rows in self._largest.items()}
        lengths = {name: torch.zeros_like(rows) for name, rows in self._largest.items()}
        for _, stored, _ in self._visits(own):
            for name, (query, kind) in PATTERNS.items():
                add_to_row_means(
                    own[query],
                    stored[kind],
                    self.beta,
                    self.steps,
                    gradients[name],
                    self._largest[name],
                    sums[name],
                    lengths[name],
                )
        return {name: sums[name].div_(lengths[name]) for name in sums}

    def _visits(
        self, own: dict[str, Embeddings], sums: Sequence[Tensor] = (), gradients: Sequence[Pulled] = ()
    ) -> Iterator[tuple[Visit, dict[str, Embeddings], list[Pulled]]]:
        """The rows of all processes, block by block: embeddings by the names in `own`, gradients in order."""
        parts: list[Embeddings | Pulled] = [*own.values(), *gradients]
        traveling = [tensor for part in parts for tensor in part.tensors()]
        for visit in visits(self.inputs.layout, traveling, sums, most_rows=self.steps.tile[1]):
            if visit.own:
                yield visit, own, list(gradients)
                continue
            arrived = iter(visit.tensors)
            stored = {name: rows.visited([next(arrived) for _ in rows.tensors()]) for name, rows in own.items()}
            yield visit, stored, [Pulled(next(arrived), next(arrived)) for _ in gradients]

    def _own_embeddings(self, *names: str) -> dict[str, Embeddings]:
        """Made when they are needed: of a large batch they cost less time than the memory they would take between."""
        for name, rows in (("x", self.inputs.x), ("y", self.inputs.y)):
            if name in names and name not in self._kept:
                deviations = self.steps.operand(rows - self.means[name])
                self._kept[name] = Embeddings(name, self.means[name], deviations, self._biases[name])
        made = {name: self._kept[name] for name in names}
        if len(self.inputs.x) > self.steps.tile[1]:
            self._kept.clear()
        return made

    def _zeros(self) -> Tensor:
        return torch.zeros(self.inputs.x.shape, dtype=self.steps.dtype, device=self.inputs.x.device)
