"""Retrieval of all four pattern matrices of CLOOB and its gradient, for the rows of one process (docs/loss.md).

With E = exp(beta Q S^T), row i of A = E S points where softmax(beta q_i S^T) S points; only its length differs, and
that goes away in the normalization. So no softmax is ever formed. What comes back from the normalization, r, is
orthogonal to A in every row, which is why the softmax's own correction term is zero here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.core.distributed import RingBlock, mean_of_rows, ring_blocks, sum_over_processes
from cloob_cli.core.loss.inputs import LossInputs
from cloob_cli.core.loss.steps import Exponents, Steps, row_products

# The pattern matrices: with which queries they are retrieved from which stored embeddings.
PATTERNS = {"u_x": ("x", "x"), "u_y": ("y", "x"), "v_x": ("x", "y"), "v_y": ("y", "y")}

# Scores up to this size are exponentiated as they are. Deviations from a mean make up to four times as much of them,
# and exp(80) leaves room for sums over any batch.
LARGEST_SCORE = 20.0


def small_scores(inputs: LossInputs, beta: float) -> bool:
    """All scores can be exponentiated as they are; the same answer on every process."""
    return beta * inputs.largest_norm**2 <= LARGEST_SCORE


@dataclass(frozen=True)
class Embeddings:
    """Rows [n, D] of the matrix `name` as its mean [D] and their deviations from it, an operand.

    Embeddings in a narrow cone, as at the start of training, differ by less than the rounding of what they share. So
    products see deviations from the mean of all processes' rows. `biases` holds, by the name of the other matrix, beta
    times the products [n] of the exact deviations with that matrix's mean: what scores have on top of the product of
    deviations (a constant is left out, which no softmax sees).
    """

    name: str
    mean: Tensor
    deviations: Tensor
    biases: dict[str, Tensor]


# The gradient r [n, D] of patterns, an operand, and its products [n] with the mean of what was stored.
PatternGradient = tuple[Tensor, Tensor]


class Retrieval:
    """U_x, U_y retrieved from the images with X and Y, and V_x, V_y from the texts; rows of unit norm.

    E is the same matrix for the queries Q that look into S and for the queries S that look into Q. So X Y^T is made
    once, for V_x by its rows and for U_y by its columns; of X X^T and Y Y^T one half is made where both sides are a
    process's own rows. E enters the products as F = E - e f^T, where e and f are exp(biases) of the queries and of the
    stored: what its elements have in common is added in full precision.

    Scores that are too large for that are a rare case: the maximum of each row is subtracted from them, and each of the
    four matrices is made by itself.
    """

    def __init__(self, inputs: LossInputs, beta: float, steps: Steps) -> None:
        self.inputs, self.beta, self.steps = inputs, beta, steps
        self._rows = {"x": inputs.x, "y": inputs.y}
        self._means = {name: mean_of_rows(rows, inputs.layout) for name, rows in self._rows.items()}
        deviations = {name: rows - self._means[name] for name, rows in self._rows.items()}
        self._biases = {
            name: {other: beta * torch.mv(rows, mean) for other, mean in self._means.items()}
            for name, rows in deviations.items()
        }
        self._small = small_scores(inputs, beta)
        if self._small:
            self._find_common(deviations)
        # By pattern matrix: 1 / (norms [n, 1] before normalization); gradients; of small scores e^T r [D] of this
        # process's rows; of large ones the largest of each row [n].
        self._inverse: dict[str, Tensor] = {}
        self._gradients: dict[str, PatternGradient] = {}
        self._totals: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}

    def _find_common(self, deviations: dict[str, Tensor]) -> None:
        """By the names of a matrix and of the one that it meets: e or f [n] of own rows, and f^T S [D] of all."""
        self._factors, parts = {}, []
        for name, biases in self._biases.items():
            for other, bias in biases.items():
                self._factors[name, other] = bias.exp()
                # Deviations add up to zero, so that f - 1 will do, which is small where all rows are alike.
                less_one = bias.expm1()
                parts.append(torch.cat([less_one @ deviations[name], less_one.sum(dim=0, keepdim=True)]))
        totals = sum_over_processes(torch.stack(parts), self.inputs.layout)
        self._common = {
            (name, other): total[:-1] + (total[-1] + self.inputs.layout.total) * self._means[name]
            for (name, other), total in zip(self._factors, totals, strict=True)
        }

    def patterns(self, *names: str) -> dict[str, Tensor]:
        """The pattern matrices of these names, [n, D] each. U_y comes with V_x, from one score matrix."""
        own = self._own({needed for name in names for needed in PATTERNS[name]})
        patterns = {name: torch.zeros_like(self.inputs.x) for name in names}
        if not self._small:
            self._find_largest(names, own)
        by_columns = [patterns["u_y"]] if self._small and "u_y" in names else []
        for block, stored, _ in self._blocks(own, by_columns):
            for name in self._made_by_rows(names):
                columns = block.sums[0] if by_columns and name == "v_x" else None
                self._scores(name, own, stored).retrieve(patterns[name], columns)
        for name, rows in patterns.items():
            if self._small:  # E S = F S + e (f^T S)
                query, kind = PATTERNS[name]
                rows.addcmul_(self._factors[query, kind][:, None], self._common[kind, query])
            self._inverse[name] = normalize_rows(rows)
        return patterns

    def add_gradient(self, name: str, pattern: Tensor, gradient: Tensor) -> None:
        """Take the gradient [n, D] for a pattern matrix, and this for the last time; the gradient is overwritten."""
        query, kind = PATTERNS[name]
        normalize_backward(gradient, pattern, self._inverse[name])
        if self._small:
            self._totals[name] = self._factors[query, kind] @ gradient
        self._gradients[name] = (self.steps.operand(gradient), gradient @ self._means[kind])

    def backward(self) -> tuple[Tensor, Tensor]:
        """The gradient for x and y [n, D] from that of all four pattern matrices."""
        own, gradients = self._own("xy"), self._gradients
        grads = {"x": torch.zeros_like(self.inputs.x), "y": torch.zeros_like(self.inputs.y)}
        travels = gradients["u_y"] if self._small else None
        for block, stored, their_u_y in self._blocks(own, list(grads.values()), travels):
            grad_blocks = dict(zip(grads, block.sums, strict=True))
            for name in self._made_by_rows(PATTERNS):
                query, kind = PATTERNS[name]
                by_columns = their_u_y if name == "v_x" else gradients[name]
                if not self._small or not (block.own or name == "v_x"):
                    by_columns = None
                scores = self._scores(name, own, stored)
                scores.backward(gradients[name], by_columns, grads[query], grad_blocks[kind])
        if self._small:  # E^T r = F^T r + f (e^T r)
            totals = sum_over_processes(torch.stack([self._totals[name] for name in PATTERNS]), self.inputs.layout)
            for (query, kind), total in zip(PATTERNS.values(), totals, strict=True):
                grads[kind].addcmul_(self._factors[kind, query][:, None], total)
        return grads["x"], grads["y"]

    def _find_largest(self, names: Sequence[str], own: dict[str, Embeddings]) -> None:
        for name in names:
            self._largest[name] = self.inputs.x.new_full((len(self.inputs.x),), -torch.inf)
        for _, stored, _ in self._blocks(own):
            for name in names:
                for i, _, _, scores, vectors in self._scores(name, own, stored).tiles():
                    largest = self._largest[name][i]
                    torch.maximum(largest, scores.add_(vectors.column_bias).amax(dim=1), out=largest)

    def _made_by_rows(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not (self._small and name == "u_y")]

    def _scores(self, name: str, own: dict[str, Embeddings], stored: dict[str, Embeddings]) -> _Scores:
        query, kind = PATTERNS[name]
        return _Scores(own[query], stored[kind], self.beta, self.steps, None if self._small else self._largest[name])

    def _blocks(
        self, own: dict[str, Embeddings], sums: Sequence[Tensor] = (), gradient: PatternGradient | None = None
    ) -> Iterator[tuple[RingBlock, dict[str, Embeddings], PatternGradient | None]]:
        """The rows of all processes, block by block: embeddings by the names in `own`, and their gradient."""
        travelling = [tensor for rows in own.values() for tensor in (rows.deviations, *rows.biases.values())]
        travelling += gradient or []
        for block in ring_blocks(self.inputs.layout, travelling, sums, most_rows=self.steps.sizes.tile[1]):
            if block.own:
                yield block, own, gradient
                continue
            arrived = iter(block.tensors)
            stored = {
                name: Embeddings(name, rows.mean, next(arrived), {other: next(arrived) for other in rows.biases})
                for name, rows in own.items()
            }
            yield block, stored, None if gradient is None else (next(arrived), next(arrived))

    def _own(self, names: Iterable[str]) -> dict[str, Embeddings]:
        """Made when they are needed: they cost less time than the memory that they would take between."""
        return {
            name: Embeddings(name, mean, self.steps.operand(self._rows[name] - mean), self._biases[name])
            for name, mean in self._means.items()
            if name in names
        }


class _Scores:
    """The score matrix of queries and stored, tile by tile; of small scores E stands for F (see `Retrieval`).

    `largest` [n], given for large scores, is subtracted from rows.
    """

    def __init__(
        self, queries: Embeddings, stored: Embeddings, beta: float, steps: Steps, largest: Tensor | None
    ) -> None:
        self.queries, self.stored, self.beta, self.steps = queries, stored, beta, steps
        self.small = largest is None
        self.symmetric = self.small and queries is stored
        self.row_bias = queries.biases[stored.name] if largest is None else -largest
        self.column_bias = stored.biases[queries.name]
        self.row_sums, self.column_sums = torch.zeros_like(self.row_bias), torch.zeros_like(self.column_bias)
        self.row_change, self.column_change = torch.zeros_like(self.row_bias), torch.zeros_like(self.column_bias)

    def tiles(self) -> Iterator[tuple[slice, slice, bool, Tensor, Exponents]]:
        """Rows, columns, a flag for being its own mirror image, scores and vectors of each tile.

        Of a symmetric matrix only the tiles on and above the diagonal: each also stands for its mirror image, but those
        on the diagonal are their own.
        """
        rows, columns, (height, width) = len(self.row_bias), len(self.column_bias), self.steps.sizes.tile
        not_summed = torch.zeros_like(self.column_sums)
        queries, stored = self.queries.deviations, self.stored.deviations
        for top in range(0, rows, height):
            i = slice(top, min(top + height, rows))
            lefts = range(i.stop if self.symmetric else 0, columns, width)
            across = [slice(left, min(left + width, columns)) for left in lefts]
            for j in [i, *across] if self.symmetric else across:
                mirrored = self.symmetric and j is i
                scores = self.steps.product("scores", queries[i], stored[j].T, self.beta)
                sums = self.row_sums[i], (not_summed if mirrored else self.column_sums)[j]
                biases = self.row_bias[i], self.column_bias[j]
                changes = self.row_change[i], self.column_change[j]
                yield i, j, mirrored, scores, Exponents(*biases, *sums, self.small, *changes)

    def retrieve(self, rows: Tensor, columns: Tensor | None) -> None:
        """rows += E stored and, if given, columns += E^T queries; if symmetric, both are rows."""
        columns = rows if self.symmetric else columns
        for i, j, mirrored, scores, vectors in self.tiles():
            weights, _ = self.steps.exponentials(scores, vectors)
            self.steps.add_product(rows[i], weights, self.stored.deviations[j])
            if columns is not None and not mirrored:
                self.steps.add_product(columns[j], weights.T, self.queries.deviations[i])
        self._add_means(rows, columns)

    def backward(
        self, by_rows: PatternGradient, by_columns: PatternGradient | None, grad_queries: Tensor, grad_stored: Tensor
    ) -> None:
        """The gradient of E stored and, if given, of E^T queries, added to grad_queries and grad_stored.

        With G = E * (r_q S^T + Q r_s^T), elementwise and never for F: for Q it is beta G S + E r_s, for S it is
        beta G^T Q + E^T r_q.
        """
        queries, stored, steps = self.queries.deviations, self.stored.deviations, self.steps
        rows, self.row_change = by_rows
        columns, self.column_change = by_columns or (None, self.column_change)
        for i, j, mirrored, scores, vectors in self.tiles():
            change = steps.product("change", rows[i], stored[j].T)
            if columns is not None:
                steps.add_product(change, queries[i], columns[j].T)
            weights, gradient = steps.exponentials(scores, vectors, change)
            assert gradient is not None
            steps.add_product(grad_queries[i], gradient, stored[j], self.beta)
            if columns is not None:
                steps.add_product(grad_queries[i], weights, columns[j])
            if not mirrored:
                steps.add_product(grad_stored[j], gradient.T, queries[i], self.beta)
                steps.add_product(grad_stored[j], weights.T, rows[i])
        self._add_means(grad_queries, grad_stored, self.beta)

    def _add_means(self, rows: Tensor, columns: Tensor | None, scale: float = 1.0) -> None:
        """Add what products with deviations lack of those with embeddings."""
        if self.symmetric:
            self.row_sums += self.column_sums
        elif columns is not None:
            columns.addcmul_(self.column_sums[:, None], self.queries.mean, value=scale)
        rows.addcmul_(self.row_sums[:, None], self.stored.mean, value=scale)


def normalize_rows(rows: Tensor) -> Tensor:
    """Give rows [n, D] unit norm in place; returns 1 / (their norms) [n, 1]. Rows of zeros stay zero, with 0.

    A row may be as large as exp(40): it is divided by its largest element before anything is squared.
    """
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True)
    empty = largest == 0
    rows.div_(largest.masked_fill_(empty, 1))
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).masked_fill_(empty, 1)
    rows.div_(norm)
    inverse: Tensor = 1 / (largest * norm)
    return inverse.masked_fill_(empty, 0)


def normalize_backward(gradient: Tensor, rows: Tensor, inverse: Tensor) -> None:
    """The gradient before `normalize_rows` from that after it, in place; both [n, D].

    It is orthogonal to the normalized rows; the second time subtracts the rounding of the first, which is large beside
    a gradient that points almost along its row.
    """
    for _ in range(2):
        gradient.addcmul_(rows, row_products(gradient, rows)[:, None], value=-1)
    gradient.mul_(inverse)
