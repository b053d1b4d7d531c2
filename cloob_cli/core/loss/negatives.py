"""Sums over negatives, of InfoLOOB and InfoNCE, and their gradient, chunk by chunk of the scores (docs/loss.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cloob_cli.core.distributed import RingBlock, mean_of_rows, parts_for_own_rows, ring_blocks, scatter_sum
from cloob_cli.core.loss.inputs import LossInputs
from cloob_cli.core.loss.steps import LOWEST, RowSoftmax, Steps, row_products

# Of a scalar: for two matrices of this process's rows [n, D], and for the scalar inv_tau.
Gradient = tuple[Tensor, Tensor, Tensor]

# A block of columns, rows of this process, and their softmax; row i's positive is in column diagonal + i.
_Chunk = tuple[RingBlock, slice, int, RowSoftmax]


def sums_over_negatives(
    left: Tensor, right: Tensor, inputs: LossInputs, steps: Steps, *, both: bool = False, in_sums: bool = False
) -> tuple[Tensor, Gradient | None]:
    """Sum of logsumexp_j(inv_tau l_i.r_j) - inv_tau l_i.r_i over this process's rows i, and its gradient.

    j are the negatives of i, with `in_sums` also i itself. With `both` the same sum with left and right exchanged is
    added, from the columns of the same score matrix. The gradient for rows is that of all processes' sums, for inv_tau
    that of this one's; None where none is needed.
    """
    scores = _ScoreMatrix(left, right, inputs, steps, both, in_sums)
    # On one process a chunk holds whole rows: where only rows are summed, no logit is made twice. Else all chunks must
    # have been seen before the first can enter the gradient.
    at_once = inputs.needs_grad and inputs.layout.processes == 1 and not both
    only = None if at_once else scores.sum_up_all()
    gradient = scores.gradient(at_once, only) if inputs.needs_grad else None
    return scores.loss(), gradient


class _ScoreMatrix:
    """inv_tau times left right^T, of which this process makes its own rows.

    Products see deviations from the means. What all lefts have in common adds to columns, what all rights have in
    common to rows, in full precision. The sum over a row does not see the latter; where columns are summed too, only
    the constant that both means make is left out.
    """

    def __init__(
        self, left: Tensor, right: Tensor, inputs: LossInputs, steps: Steps, both: bool, in_sums: bool
    ) -> None:
        self.left, self.inputs, self.steps, self.both, self.in_sums = left, inputs, steps, both, in_sums
        self.left_mean, self.right_mean = mean_of_rows(left, inputs.layout), mean_of_rows(right, inputs.layout)
        lefts, rights = left - self.left_mean, right - self.right_mean
        self.row_bias = torch.mv(lefts, self.right_mean).mul_(inputs.inv_tau_value)
        self.column_bias = torch.mv(rights, self.left_mean).mul_(inputs.inv_tau_value)
        self.positives = row_products(lefts, rights).mul_(inputs.inv_tau_value).add_(self.column_bias)
        if both:
            self.positives.add_(self.row_bias)
        self.lefts, self.rights = steps.operand(lefts), steps.operand(rights)
        # The sum of row i is totals_i exp(maxima_i); the logarithms of the columns' follow.
        self.maxima, self.totals = left.new_full((len(left), 1), LOWEST), left.new_zeros(len(left), 1)
        self.column_sums: Tensor | None = None

    def loss(self) -> Tensor:
        loss = (self.maxima + self.totals.log()).sum() - self.positives.sum()
        return loss if self.column_sums is None else loss + self.column_sums.sum() - self.positives.sum()

    def sum_up_all(self) -> _Chunk | None:
        """Find the sums of rows and, where they count, columns. Returns the chunk if one was the whole matrix."""
        column_parts = self.left.new_full((self.inputs.layout.total,), -torch.inf)
        made = 0
        for chunk in self._chunks():
            made += 1
            block, rows, _, softmax = chunk
            self._sum_up(rows, softmax)
            if self.both:
                self.steps.add_column_logsumexp(softmax.logits, column_parts[block.rows])
        if self.both:
            self.column_sums = parts_for_own_rows(column_parts, self.inputs.layout).logsumexp(dim=0)
        return chunk if made == 1 and self.inputs.layout.processes == 1 else None

    def gradient(self, at_once: bool, only: _Chunk | None) -> Gradient:
        """The gradient, given the sums; or while they are found (`at_once`); from the `only` chunk if there is one."""
        layout, steps, inv_tau = self.inputs.layout, self.steps, self.inputs.inv_tau_value
        grad_left, grad_right = torch.zeros_like(self.left), torch.zeros_like(self.left)
        # Sums of the matrix that the products should have, and what they have less for the operand's rounding.
        row_sums, column_sums = self.left.new_zeros(len(self.left)), self.left.new_zeros(layout.total)
        row_rests, column_rests = torch.zeros_like(row_sums), torch.zeros_like(column_sums)
        own_sums = [] if self.column_sums is None else [self.column_sums]
        for block, rows, diagonal, softmax in [only] if only else self._chunks(own_sums, [grad_right]):
            if at_once:
                self._sum_up(rows, softmax)
            logsumexp, grad_block = (own_sums, grad_right) if block.own else (block.tensors[2:], block.sums[0])
            # The same to the last bit for all blocks with a row's maximum: else duplicates would not cancel.
            factor = (softmax.largest - self.maxima[rows]).exp_().div_(self.totals[rows])
            sums = row_sums[rows], column_sums[block.rows]
            columns = logsumexp[0] if self.both else None
            weights = steps.softmax_gradient(softmax, factor, columns, diagonal, sums)
            if steps.precision == "bf16":
                row_rests[rows] -= weights.sum(dim=1, dtype=steps.dtype)
                column_rests[block.rows] -= weights.sum(dim=0, dtype=steps.dtype)
            steps.add_product(grad_left[rows], weights, block.tensors[0], inv_tau)
            steps.add_product(grad_block, weights.T, self.lefts[rows], inv_tau)
        column_sums = scatter_sum(column_sums, layout)
        if steps.precision == "bf16":
            # Where a negative duplicates the positive, almost all of the gradient cancels: what the operand left of a
            # row's weights is made up for at the positive, so that what remains is not rounding.
            column_rests = scatter_sum(column_rests, layout) + column_sums
            grad_left.addcmul_(self.rights, (row_rests + row_sums)[:, None], value=inv_tau)
            grad_right.addcmul_(self.lefts, column_rests[:, None], value=inv_tau)
        if self.both:
            grad_left.addcmul_(row_sums[:, None], self.right_mean, value=inv_tau)
        grad_right.addcmul_(column_sums[:, None], self.left_mean, value=inv_tau)
        # Logits are inv_tau l_i.r_j: Euler's rule for this product.
        grad_tau = row_products(self.left, grad_left).sum() / inv_tau
        return grad_left, grad_right, grad_tau

    def _chunks(self, tensors: Sequence[Tensor] = (), sums: Sequence[Tensor] = ()) -> Iterator[_Chunk]:
        """Every block of columns (see `ring_blocks`) with every chunk of this process's rows."""
        own, steps = self.inputs.layout.own, self.steps
        travelling = [self.rights, self.column_bias, *tensors]
        for block in ring_blocks(self.inputs.layout, travelling, sums, most_rows=steps.sizes.tile[1]):
            rights, column_bias, *_ = block.tensors
            # A block of others' rows is as wide as a tile; taller chunks would make the D columns beside it large.
            tallest = None if block.own else steps.sizes.tile[0]
            for rows in steps.chunks(len(self.lefts), len(rights), tallest):
                logits = steps.product("scores", self.lefts[rows], rights.T, self.inputs.inv_tau_value)
                if self.both:
                    logits.add_(self.row_bias[rows, None])
                joint = slice(own.start + rows.start, own.start + rows.stop)
                self._leave_out(logits, joint, block.rows)
                softmax = steps.softmax_of_rows(logits, column_bias, keep_logits=self.both)
                yield block, rows, joint.start - block.rows.start, softmax

    def _leave_out(self, logits: Tensor, rows: slice, columns: slice) -> None:
        """Set to -inf, in place, what is no negative; positives too, unless they count like one."""
        positives, ids = logits.diagonal(rows.start - columns.start), self.inputs.caption_ids
        kept = positives.clone() if self.in_sums else torch.full_like(positives, -torch.inf)
        if ids is not None:
            logits.masked_fill_(ids[rows, None] == ids[columns], -torch.inf)
        positives.copy_(kept)

    def _sum_up(self, rows: slice, softmax: RowSoftmax) -> None:
        """Add a chunk to the sums of its rows."""
        maxima, totals = self.maxima[rows], self.totals[rows]
        before = maxima.clone()
        torch.maximum(before, softmax.largest, out=maxima)
        totals.mul_(before.sub_(maxima).exp_()).addcmul_(softmax.total, (softmax.largest - maxima).exp_())
