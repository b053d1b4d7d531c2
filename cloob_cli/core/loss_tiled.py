"""The exact losses in memory linear in the batch: tiles of the score matrices, made, used and forgotten.

docs/loss.md derives every line, in the same names. The gradient is computed together with the loss: later it can only
be multiplied by one number, which is what the backward pass does. What a tile goes through is in `loss_steps.py` (plain
torch) and `loss_triton.py` (Triton).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloob_cli.core.exchange import Visit, visits
from cloob_cli.core.gather import mean_of_rows, parts_for_own_rows, scatter_sum, sum_over_processes
from cloob_cli.core.loss_inputs import LossInputs
from cloob_cli.core.loss_retrieval import Retrieval
from cloob_cli.core.loss_steps import Steps, leave_out, positives_of_tile


@dataclass
class Gradient:
    """Of a scalar: for two matrices of embeddings [n, D], and for the scalar inv_tau."""

    left: Tensor
    right: Tensor
    inv_tau: Tensor


def tiled_loss(inputs: LossInputs, objective: str, scale_hopfield: float, steps: Steps) -> Tensor:
    """The loss of `contrastive_loss`, differentiable once with respect to x, y and inv_tau."""
    tau = inputs.inv_tau if isinstance(inputs.inv_tau, Tensor) else inputs.x.new_tensor(inputs.inv_tau)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs.x, inputs.y, tau))
    return _TiledLoss.apply(inputs.x, inputs.y, tau, inputs, objective, scale_hopfield, steps, wanted)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, inv_tau, inputs: LossInputs, objective, scale_hopfield, steps: Steps, wanted: bool):
        with torch.autocast(x.device.type, enabled=False), steps.matmul_precision():
            if objective == "cloob":
                loss, result = _cloob(inputs, scale_hopfield, steps, wanted)
            else:
                loss, result = _two_directions(inputs, objective == "clip", steps, wanted)
        ctx.processes = inputs.layout.processes
        if result:
            ctx.save_for_backward(result.left, result.right, result.inv_tau)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, y, inv_tau = ctx.saved_tensors
        wanted_x, wanted_y, wanted_inv_tau, *_ = ctx.needs_input_grad
        scale = gradient * ctx.processes  # DDP averages over processes: the convention of contrastive_loss
        return (
            scale * x if wanted_x else None,
            scale * y if wanted_y else None,
            gradient * inv_tau if wanted_inv_tau else None,
            *[None] * 5,
        )


def _cloob(inputs: LossInputs, beta: float, steps: Steps, wanted: bool) -> tuple[Tensor, Gradient | None]:
    """1/2 [L(U_x, U_y) + L(V_y, V_x)]."""
    layout = inputs.layout
    retrieval = Retrieval(inputs, beta, steps)
    patterns = retrieval.all_but_last()
    pulled = {}
    loss = inputs.x.new_zeros(())
    for_tau = inputs.x.new_zeros(())
    for anchors, partners in (("u_x", "u_y"), ("v_y", "v_x")):
        if anchors == "v_y":
            patterns["v_y"] = retrieval.last()
        lengths = {name: steps.normalise_rows(patterns[name]) for name in (anchors, partners)}
        part, gradient = _leave_one_out(patterns[anchors], patterns[partners], inputs, steps, wanted)
        loss += part
        if gradient is None:
            continue
        for_tau += gradient.inv_tau
        for name, for_pattern in ((anchors, gradient.left), (partners, gradient.right)):
            # The 1/(2N) of the mean goes in here.
            steps.pull_through_normalisation(for_pattern, patterns.pop(name), lengths[name], 1 / (2 * layout.total))
            pulled[name] = retrieval.pulled(name, for_pattern)
        del gradient, for_pattern
    loss = sum_over_processes(loss, layout) / (2 * layout.total)
    if not wanted:
        return loss, None
    for_x, for_y = retrieval.backward(pulled)
    return loss, Gradient(for_x, for_y, sum_over_processes(for_tau, layout) / (2 * layout.total))


def _leave_one_out(
    anchors: Tensor, partners: Tensor, inputs: LossInputs, steps: Steps, wanted: bool
) -> tuple[Tensor, Gradient | None]:
    """N L(A, B), the terms of this process's rows, and the gradient of all terms for this process's rows of A and B.

    A vector that all partners have in common adds the same to every logit of a row, which L does not see: it is left
    out. What all anchors have in common adds to columns, in full precision.

    On one process a chunk holds whole rows, and no logit is made twice. Where partners come block by block, a row's sum
    is known only when all have been here: they come once for the sums and once more for the gradient.
    """
    layout, inv_tau = inputs.layout, inputs.inv_tau_value
    mean = mean_of_rows(anchors, layout)
    centred, deviations = anchors - mean, partners - mean_of_rows(partners, layout)
    operands = steps.operand(centred)
    stored = [steps.operand(deviations), torch.mv(deviations, mean).mul_(inv_tau)]
    loss = -inv_tau * torch.linalg.vecdot(anchors, deviations).sum()
    del centred, deviations

    def softmaxes(*sums: Tensor) -> Iterator[tuple[Visit, slice, Tensor, Tensor, Tensor]]:
        for visit, chunk, own_rows in _chunks(inputs, stored, sums, steps):
            everybody, column_bias = visit.tensors
            logits = steps.product("scores", operands[chunk], everybody.T, inv_tau)
            positives = positives_of_tile(own_rows, visit.rows, inputs.caption_ids)
            yield visit, chunk, *steps.softmax_of_rows(logits, column_bias, positives)

    row_sums = None
    if layout.processes > 1 or not wanted:
        row_sums = anchors.new_full((len(anchors), 1), -torch.inf)
        for _, chunk, part, _, _ in softmaxes():
            torch.logaddexp(row_sums[chunk], part, out=row_sums[chunk])
        loss += row_sums.sum()
    if not wanted:
        return loss, None
    # Where an anchor's strongest negative is the positive's duplicate, almost all of its gradient cancels. So positives
    # enter as they enter the sums over negatives, rounding included: what is left over is not rounding.
    for_anchors, for_partners = torch.mul(stored[0].to(steps.dtype), -inv_tau), torch.zeros_like(partners)
    column_sums, factors = anchors.new_zeros(layout.total), anchors.new_zeros(len(anchors), 1)
    for visit, chunk, part, weights, inverse in softmaxes(for_partners):
        if row_sums is None:
            loss += part.sum()
        else:
            inverse.mul_((part - row_sums[chunk]).exp_())
        torch.maximum(factors[chunk], inverse, out=factors[chunk])
        steps.add_column_sums(column_sums[visit.rows], weights, inverse)
        for_chunk = steps.product("for_chunk", weights, visit.tensors[0], inv_tau)
        for_anchors[chunk].addcmul_(for_chunk, inverse)
        shares = (anchors[chunk] - mean).mul_(inverse)
        steps.add_product(visit.sums[0], weights.T, steps.operand(shares), inv_tau)
    column_sums = inv_tau * scatter_sum(column_sums, layout)[:, None]
    for_tau = torch.zeros_like(loss)
    for rows in steps.chunks(*anchors.shape):
        shares = (anchors[rows] - mean).mul_(factors[rows])
        rounded = steps.operand(shares).to(steps.dtype).div_(factors[rows])
        for_partners[rows].addcmul_(rounded, column_sums[rows], value=-1)
        for_partners[rows].addcmul_(anchors[rows], column_sums[rows] - inv_tau)
        # Logits are inv_tau a_i.b_j: Euler's rule for this product.
        for_tau += (anchors[rows] * for_anchors[rows]).sum() / inv_tau
    return loss, Gradient(for_anchors, for_partners, for_tau)


def _two_directions(
    inputs: LossInputs, with_positives: bool, steps: Steps, wanted: bool
) -> tuple[Tensor, Gradient | None]:
    """1/2 [L(X, Y) + L(Y, X)]: one score matrix, its rows for one direction and its columns for the other.

    Each process makes the rows of its images; the columns' sums are put together from all processes. The gradient
    needs both sums, so scores are made a second time, unless all of them fitted into one chunk. As in the other
    functions, the products see deviations from the mean only; the constant that both means make is left out.
    """
    layout, inv_tau = inputs.layout, inputs.inv_tau_value
    mean_x, mean_y = mean_of_rows(inputs.x, layout), mean_of_rows(inputs.y, layout)
    images, texts = inputs.x - mean_x, inputs.y - mean_y
    row_bias, column_bias = torch.mv(images, mean_y).mul_(inv_tau), torch.mv(texts, mean_x).mul_(inv_tau)
    positives = inv_tau * torch.linalg.vecdot(images, texts) + row_bias + column_bias
    images, texts = steps.operand(images), steps.operand(texts)

    def scores(visit: Visit, chunk: slice, own_rows: slice) -> Tensor:
        everybody, bias, *_ = visit.tensors
        logits = steps.product("scores", images[chunk], everybody.T, inv_tau).add_(row_bias[chunk, None]).add_(bias)
        left_out = positives_of_tile(own_rows, visit.rows, inputs.caption_ids)
        return leave_out(logits, left_out, keep_diagonal=with_positives)

    all_column_sums = inputs.y.new_full((layout.total,), -torch.inf)
    row_sums = inputs.x.new_full((len(images), 1), -torch.inf)
    made = 0
    for visit, chunk, own_rows in _chunks(inputs, [texts, column_bias], (), steps):
        logits = scores(visit, chunk, own_rows)
        part = steps.logsumexp_of_both(logits, all_column_sums[visit.rows])
        torch.logaddexp(row_sums[chunk], part, out=row_sums[chunk])
        made += 1
    column_sums = parts_for_own_rows(all_column_sums, layout).logsumexp(dim=0)
    loss = row_sums.sum() + column_sums.sum() - 2 * positives.sum()
    loss = sum_over_processes(loss / (2 * layout.total), layout)
    if not wanted:
        return loss, None
    for_x, for_y = torch.zeros_like(inputs.x), torch.zeros_like(inputs.y)
    row_weights, column_weights = inputs.x.new_zeros(2, len(images)), inputs.y.new_zeros(2, layout.total)
    for visit, chunk, own_rows in _chunks(inputs, [texts, column_bias, column_sums], (for_y,), steps):
        if made > 1 or layout.processes > 1:
            logits = scores(visit, chunk, own_rows)
        weights = steps.softmax_of_both(
            logits,
            row_sums[chunk],
            visit.tensors[2],
            own_rows.start - visit.rows.start,
            row_weights[:, chunk],
            column_weights[:, visit.rows],
        )
        steps.add_product(for_x[chunk], weights, visit.tensors[0])
        steps.add_product(visit.sums[0], weights.T, images[chunk])
    column_weights = scatter_sum(column_weights.T, layout).T
    if steps.precision == "bf16":
        # Where a negative duplicates the positive, almost all of the gradient cancels: what the operand left of a row's
        # weights is made up for at the positive, so that what remains is not rounding.
        for_x.addcmul_(texts, row_weights[1][:, None])
        for_y.addcmul_(images, column_weights[1][:, None])
    for_x.addcmul_(row_weights[0][:, None], mean_y).mul_(inv_tau / (2 * layout.total))
    for_y.addcmul_(column_weights[0][:, None], mean_x).mul_(inv_tau / (2 * layout.total))
    for_tau = sum_over_processes((inputs.x * for_x).sum() / inv_tau, layout)
    return loss, Gradient(for_x, for_y, for_tau)


def _chunks(
    inputs: LossInputs, tensors: Sequence[Tensor], sums: Sequence[Tensor], steps: Steps
) -> Iterator[tuple[Visit, slice, slice]]:
    """Every block of columns with every chunk of this process's rows: the visit, and the rows' numbers here and in the
    joint matrix.
    """
    own = inputs.layout.own
    for visit in visits(inputs.layout, tensors, sums, most_rows=steps.tile[1]):
        # A block of others' rows is as wide as a tile; taller chunks would make the D columns beside it large.
        tallest = None if visit.own else steps.tile[0]
        for chunk in steps.chunks(own.stop - own.start, visit.rows.stop - visit.rows.start, tallest):
            yield visit, chunk, slice(own.start + chunk.start, own.start + chunk.stop)
