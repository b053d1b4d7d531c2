"""Retrieval of all four pattern matrices of CLOOB and its gradient, for the rows of one process (docs/loss.md).

With E = exp(beta Q S^T), row i of A = E S points where softmax(beta q_i S^T) S points; only its length differs, and
that goes away in the normalisation. So no softmax is ever formed: the caller normalises A. What comes back from there,
r, is at right angles to A in every row, which is why the softmax's own correction term is zero here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cloob_cli.core.exchange import Visit, visits
from cloob_cli.core.gather import mean_of_rows
from cloob_cli.core.loss_inputs import LossInputs
from cloob_cli.core.loss_operands import Embeddings, Pulled, embeddings, pulled
from cloob_cli.core.loss_retrieval_rows import add_to_row_means, pull_rows, retrieve_rows
from cloob_cli.core.loss_retrieval_tiles import pull_in_tiles, retrieve_in_tiles
from cloob_cli.core.loss_steps import Steps

# Scores up to this size are exponentiated as they are, in tiles. exp(2 * 20) leaves room for sums over any batch, and
# the rounding of float32 times 20 stays below 1e-5. Larger ones need the maximum and the mean of whole rows.
LARGEST_TILED = {torch.float32: 20.0, torch.float64: 150.0}

# The pattern matrices: with which queries they are retrieved from which stored embeddings.
PATTERNS = {"u_x": ("x", "x"), "u_y": ("y", "x"), "v_x": ("x", "y"), "v_y": ("y", "y")}


def small_scores(inputs: LossInputs, beta: float) -> bool:
    return beta * inputs.largest_norm**2 <= LARGEST_TILED[inputs.x.dtype]


class Retrieval:
    """U_x, U_y retrieved from the images with X and Y, and V_x, V_y from the texts.

    E is the same matrix for the queries Q that look into S and for the queries S that look into Q. Among a process's
    own rows it is made once for both: one half of X X^T and of Y Y^T, and X Y^T, instead of four whole matrices. With
    the rows of other processes, and where scores are large, each of the four is made by itself.
    """

    def __init__(self, inputs: LossInputs, beta: float, steps: Steps) -> None:
        self.inputs = inputs
        self.beta = beta
        self.steps = steps
        self.tiled = small_scores(inputs, beta)
        self.means = {"x": mean_of_rows(inputs.x, inputs.layout), "y": mean_of_rows(inputs.y, inputs.layout)}
        self._largest: dict[str, Tensor] = {}  # the largest score of each row [n, 1], by pattern matrix

    def all_but_last(self) -> dict[str, Tensor]:
        """U_x, U_y and V_x by name, [n, D] each, not normalised."""
        patterns = {name: self._zeros(self.inputs.x) for name in ("u_x", "u_y", "v_x")}
        self._retrieve({"x": self._embeddings("x"), "y": self._embeddings("y")}, patterns)
        return patterns

    def last(self) -> Tensor:
        """V_y, by itself so that it need not wait in memory for its turn."""
        v_y = self._zeros(self.inputs.y)
        self._retrieve({"y": self._embeddings("y")}, {"v_y": v_y})
        return v_y

    def pulled(self, pattern: str, gradient: Tensor) -> Pulled:
        """What `backward` takes for the pattern matrix of that name: its gradient [n, D]."""
        return pulled(gradient, self.means[PATTERNS[pattern][1]], self.steps)

    def backward(self, gradients: dict[str, Pulled]) -> tuple[Tensor, Tensor]:
        """The gradient for x and y [n, D] from that of all four pattern matrices."""
        own = {"x": self._embeddings("x"), "y": self._embeddings("y")}
        sums = {name: self._zeros(self.inputs.x) for name in own}
        means = {} if self.tiled or self.inputs.layout.processes == 1 else self._row_means(own, gradients)
        for visit, stored in self._visits(own, list(sums.values())):
            for_stored = dict(zip(sums, visit.sums, strict=True))
            if not self.tiled:
                for pattern, (query, kind) in PATTERNS.items():
                    pull_rows(
                        own[query],
                        stored[kind],
                        self.beta,
                        self.steps,
                        gradients[pattern],
                        self._largest[pattern],
                        means.get(pattern),
                        sums[query],
                        for_stored[kind],
                    )
                continue
            # One score matrix, and the pattern matrices that are retrieved with its rows and, shared, its columns.
            matrices: list[tuple[str, str | None]] = [("u_x", None), ("u_y", None), ("v_x", None), ("v_y", None)]
            if visit.own:
                matrices = [("u_x", "u_x"), ("v_x", "u_y"), ("v_y", "v_y")]
            for by_row, by_column in matrices:
                query, kind = PATTERNS[by_row]
                pull_in_tiles(
                    own[query],
                    stored[kind],
                    self.beta,
                    self.steps,
                    gradients[by_row],
                    gradients[by_column] if by_column else None,
                    sums[query],
                    for_stored[kind],
                )
        return sums["x"], sums["y"]

    def _retrieve(self, own: dict[str, Embeddings], patterns: dict[str, Tensor]) -> None:
        """Add to each of `patterns` what it retrieves, from the embeddings of all processes."""
        if not self.tiled:
            self._largest |= {name: rows.new_full((len(rows), 1), -torch.inf) for name, rows in patterns.items()}
        for visit, stored in self._visits(own):
            for name, rows in patterns.items():
                query, kind = PATTERNS[name]
                if not self.tiled:
                    retrieve_rows(own[query], stored[kind], self.beta, self.steps, rows, self._largest[name])
                elif not (visit.own and name == "u_y"):  # which is made with v_x there
                    shared = patterns["u_y"] if visit.own and name == "v_x" else None
                    retrieve_in_tiles(own[query], stored[kind], self.beta, self.steps, rows, shared)

    def _row_means(self, own: dict[str, Embeddings], gradients: dict[str, Pulled]) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(rows) for name, rows in self._largest.items()}
        lengths = {name: torch.zeros_like(rows) for name, rows in self._largest.items()}
        for _, stored in self._visits(own):
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
        self, own: dict[str, Embeddings], sums: Sequence[Tensor] = ()
    ) -> Iterator[tuple[Visit, dict[str, Embeddings]]]:
        """The rows of all processes, block by block, by the names in `own`."""
        tensors = [tensor for rows in own.values() for tensor in rows.tensors()]
        for visit in visits(self.inputs.layout, tensors, sums, most_rows=self.steps.tile[1]):
            each = len(tensors) // len(own)
            stored = (
                own
                if visit.own
                else {
                    name: rows.visited(visit.tensors[number * each : (number + 1) * each])
                    for number, (name, rows) in enumerate(own.items())
                }
            )
            yield visit, stored

    def _embeddings(self, name: str) -> Embeddings:
        """Made when they are needed: they cost less time than the memory they would take between."""
        rows = self.inputs.x if name == "x" else self.inputs.y
        return embeddings(name, rows, self.means, self.beta, self.steps)

    def _zeros(self, rows: Tensor) -> Tensor:
        return torch.zeros(rows.shape, dtype=self.steps.dtype, device=rows.device)
