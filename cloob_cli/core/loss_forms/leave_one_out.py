"""InfoLOOB in one direction, of patterns: the sums over negatives and their gradient (docs/loss.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.core.exchange import Visit
from cloob_cli.core.gather import mean_of_rows, scatter_sum
from cloob_cli.core.loss_forms.chunks import Gradient, score_chunks
from cloob_cli.core.loss_forms.inputs import LossInputs
from cloob_cli.core.loss_forms.steps import LOWEST, Steps, positives_of_tile


def leave_one_out_sums(
    anchors: Tensor, partners: Tensor, inputs: LossInputs, steps: Steps
) -> tuple[Tensor, Gradient | None]:
    """N L(A, B), the terms of this process's rows [n, D], and the gradient of all terms for these rows of A and B.

    A vector that all partners have in common adds the same to every logit of a row, which L does not see: it is left
    out. What all anchors have in common adds to columns, in full precision.

    Where an anchor's strongest negative is a duplicate of its positive, almost all of its gradient cancels. So
    positives enter the gradient as they enter the sums over negatives, rounding included: what is left over is not
    rounding.
    """
    layout, inv_tau = inputs.layout, inputs.inv_tau_value
    mean = mean_of_rows(anchors, layout)
    loss, sums = _sums_over_negatives(anchors, partners, mean, inputs, steps)
    if sums is None:
        return loss, None
    column_sums = inv_tau * scatter_sum(sums.column_sums, layout)[:, None]
    for_tau = torch.zeros_like(loss)
    for rows in steps.chunks(len(anchors), anchors.shape[1], tallest=_TALLEST):
        shares = (anchors[rows] - mean).mul_(sums.factors[rows])
        rounded = steps.operand(shares).to(steps.dtype).div_(sums.factors[rows])
        sums.for_partners[rows].addcmul_(rounded, column_sums[rows], value=-1)
        sums.for_partners[rows].addcmul_(anchors[rows], column_sums[rows] - inv_tau)
        if inputs.wanted.inv_tau:  # logits are inv_tau a_i.b_j: Euler's rule for this product
            for_tau += (anchors[rows] * sums.for_anchors[rows]).sum() / inv_tau
    return loss, Gradient(sums.for_anchors, sums.for_partners, for_tau)


_TALLEST = 8192  # rows that are finished at once, so that a few copies of them cost little memory


@dataclass(frozen=True)
class _Sums:
    """The gradients [n, D], that of the partners without what their positives add; the sums [N] of the softmaxes'
    columns; and what the shares [n, 1] of anchors were multiplied with before they were rounded.
    """

    for_anchors: Tensor
    for_partners: Tensor
    column_sums: Tensor
    factors: Tensor


def _sums_over_negatives(
    anchors: Tensor, partners: Tensor, mean: Tensor, inputs: LossInputs, steps: Steps
) -> tuple[Tensor, _Sums | None]:
    """On one process a chunk holds whole rows, and no logit is made twice. Where partners come block by block, a row's
    sum is known only when all have been here: they come once for the sums and once more for the gradient.
    """
    layout, inv_tau = inputs.layout, inputs.inv_tau_value
    deviations = partners - mean_of_rows(partners, layout)
    stored = [steps.operand(deviations), torch.mv(deviations, mean).mul_(inv_tau)]
    loss = -inv_tau * torch.linalg.vecdot(anchors, deviations).sum()
    del deviations
    operands = steps.operand(anchors - mean)

    def softmaxes(*sums: Tensor) -> Iterator[tuple[Visit, slice, Tensor, Tensor, Tensor]]:
        for visit, chunk, own_rows in score_chunks(inputs, stored, sums, steps):
            everybody, column_bias = visit.tensors
            logits = steps.product("scores", operands[chunk], everybody.T, inv_tau)
            positives = positives_of_tile(own_rows, visit.rows, inputs.caption_ids)
            yield visit, chunk, *steps.softmax_of_rows(logits, column_bias, positives)

    whole_rows = None
    if layout.processes > 1 or not inputs.wanted.embeddings:
        whole_rows = anchors.new_full((len(anchors), 1), LOWEST), anchors.new_zeros(len(anchors), 1)
        maxima, totals = whole_rows
        for _, chunk, largest, _, total in softmaxes():
            _add_total(maxima[chunk], totals[chunk], largest, total)
        loss += (maxima + totals.log()).sum()
    if not inputs.wanted.embeddings:
        return loss, None
    for_anchors, for_partners = torch.mul(stored[0].to(steps.dtype), -inv_tau), torch.zeros_like(partners)
    column_sums, factors = anchors.new_zeros(layout.total), anchors.new_zeros(len(anchors), 1)
    for visit, chunk, largest, weights, total in softmaxes(for_partners):
        if whole_rows:
            maxima, totals = whole_rows
            # The same to the last bit for all blocks with a row's maximum: duplicates are told apart by nothing else.
            factor = (largest - maxima[chunk]).exp_().div_(totals[chunk])
        else:
            loss += (largest + total.log()).sum()
            factor = 1 / total
        torch.maximum(factors[chunk], factor, out=factors[chunk])
        steps.add_column_sums(column_sums[visit.rows], weights, factor)
        for_chunk = steps.product("for_chunk", weights, visit.tensors[0], inv_tau)
        for_anchors[chunk].addcmul_(for_chunk, factor)
        shares = (anchors[chunk] - mean).mul_(factor)
        steps.add_product(visit.sums[0], weights.T, steps.operand(shares), inv_tau)
    return loss, _Sums(for_anchors, for_partners, column_sums, factors)


def _add_total(maxima: Tensor, totals: Tensor, largest: Tensor, total: Tensor) -> None:
    """Add sums `total` of exp(logits - largest) to the sums `totals` of exp(logits - maxima), in place; all [m, 1]."""
    before = maxima.clone()
    torch.maximum(before, largest, out=maxima)
    totals.mul_(before.sub_(maxima).exp_()).addcmul_(total, (largest - maxima).exp_())
