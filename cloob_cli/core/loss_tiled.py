"""The exact losses in memory linear in the batch: tiles of the score matrices, made, used and forgotten.

docs/loss.md derives every line, in the same names. The gradient is computed together with the loss: later it can only
be multiplied by one number, so no score of the leave-one-out sums is made a second time, and the backward pass is that
multiplication. What a tile goes through is in `loss_steps.py` (plain torch) and `loss_kernels.py` (Triton).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloob_cli.core.gather import RowLayout, gather_rows, scatter_sum, sum_over_processes
from cloob_cli.core.loss_inputs import LossInputs
from cloob_cli.core.loss_retrieval import Retrieval
from cloob_cli.core.loss_steps import Steps, leave_out


@dataclass
class Gradient:
    """Of a scalar: for two matrices of embeddings [n, D], and for the scalar inv_tau."""

    left: Tensor
    right: Tensor
    inv_tau: Tensor


def tiled_loss(inputs: LossInputs, objective: str, scale_hopfield: float, steps: Steps) -> Tensor:
    """The loss of `contrastive_loss`, differentiable once with respect to own_x, own_y and inv_tau."""
    tau = inputs.inv_tau if isinstance(inputs.inv_tau, Tensor) else inputs.x.new_tensor(inputs.inv_tau)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs.own_x, inputs.own_y, tau))
    return _TiledLoss.apply(inputs.own_x, inputs.own_y, tau, inputs, objective, scale_hopfield, steps, wanted)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own_x, own_y, inv_tau, inputs: LossInputs, objective, scale_hopfield, steps: Steps, wanted: bool):
        with torch.autocast(own_x.device.type, enabled=False), steps.matmul_precision():
            if objective == "cloob":
                loss, result = _cloob(inputs, inv_tau, scale_hopfield, steps, wanted)
            else:
                loss, result = _two_directions(inputs, inv_tau, objective == "clip", steps, wanted)
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


def _cloob(
    inputs: LossInputs, inv_tau: Tensor, beta: float, steps: Steps, wanted: bool
) -> tuple[Tensor, Gradient | None]:
    """1/2 [L(U_x, U_y) + L(V_y, V_x)]."""
    layout = inputs.layout
    retrieval = Retrieval(inputs, beta, steps)
    patterns = dict(zip(("u_x", "u_y", "v_x"), retrieval.all_but_last(), strict=True))
    pulled = {}
    loss = inputs.x.new_zeros(())
    for_tau = inputs.x.new_zeros(())
    for anchors, partners in (("u_x", "u_y"), ("v_y", "v_x")):
        if anchors == "v_y":
            patterns["v_y"] = retrieval.last()
        lengths = {name: _normalise_rows(patterns[name]) for name in (anchors, partners)}
        part, gradient = _leave_one_out(patterns[anchors], patterns[partners], inputs, inv_tau, steps, wanted)
        loss += part / (2 * layout.total)
        if gradient is None:
            continue
        for_tau += gradient.inv_tau / (2 * layout.total)
        for name, for_pattern in ((anchors, gradient.left), (partners, gradient.right)):
            # Back through the normalisation: at right angles to the pattern. The mean's 1/(2N) goes in here.
            pattern = patterns.pop(name)
            along = (for_pattern * pattern).sum(dim=1, keepdim=True)
            for_pattern.addcmul_(pattern, along, value=-1).mul_(lengths[name] / (2 * layout.total))
            pulled[name] = retrieval.pulled(for_pattern, from_images=name.startswith("u"))
        del gradient, for_pattern, pattern
    sum_over_processes(loss, layout)
    if not wanted:
        return loss, None
    for_x, for_y = retrieval.backward(*(pulled[name] for name in ("u_x", "u_y", "v_x", "v_y")))
    return loss, Gradient(for_x, for_y, sum_over_processes(for_tau, layout))


def _normalise_rows(rows: Tensor) -> Tensor:
    """Give rows [n, D] unit norm in place; returns 1 / (their norms) [n, 1]. Rows of zeros stay zero, with 0.

    A row may be as large as exp(40): its largest element is taken out before anything is squared.
    """
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True)
    empty = largest == 0
    rows.div_(largest.masked_fill_(empty, 1))
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).masked_fill_(empty, 1)
    rows.div_(norm)
    return (1 / (largest * norm)).masked_fill_(empty, 0)


def _leave_one_out(
    anchors: Tensor, partners: Tensor, inputs: LossInputs, inv_tau: Tensor, steps: Steps, wanted: bool
) -> tuple[Tensor, Gradient | None]:
    """N L(A, B), the terms of this process's rows, and the gradient of all terms for this process's rows of A and B.

    A vector that all partners have in common adds the same to every logit of a row, which L does not see: it is left
    out. What all anchors have in common adds to columns, in full precision.
    """
    layout = inputs.layout
    everybody = gather_rows(partners, layout)
    common = everybody.mean(dim=0)
    scaled_mean = inv_tau * anchors.sum(dim=0) / max(1, len(anchors))  # a process may have no rows
    everybody = everybody - common
    column_bias = everybody @ scaled_mean
    everybody = steps.operand(everybody)
    operands = steps.operand(anchors * inv_tau - scaled_mean)
    loss = -inv_tau * (torch.linalg.vecdot(anchors, partners) - anchors @ common).sum()
    column_sums = torch.zeros_like(column_bias)
    column_sums[layout.own] = -1
    if wanted:
        for_anchors = torch.empty_like(anchors)
        for_partners = torch.zeros(layout.total, anchors.shape[1], dtype=steps.dtype, device=anchors.device)
    for chunk in steps.chunks(len(anchors), layout.total):
        logits = steps.product("scores", operands[chunk], everybody.T)
        sums, weights, inverse = steps.softmax_of_rows(
            logits, column_bias, layout.own.start + chunk.start, inputs.caption_ids, column_sums
        )
        loss += sums.sum()
        if wanted:
            steps.add_product(for_anchors[chunk], weights, everybody, keep=0).mul_(inverse * inv_tau)
            shares = (anchors[chunk] * inv_tau - scaled_mean).mul_(inverse)
            steps.add_product(for_partners, weights.T, steps.operand(shares))
    if not wanted:
        return loss, None
    for_anchors.addcmul_(partners, inv_tau, value=-1).add_(inv_tau * common)
    for_partners[layout.own].addcmul_(anchors, inv_tau, value=-1).add_(scaled_mean)
    for_partners.addcmul_(column_sums[:, None], scaled_mean)
    for_tau = (anchors * for_anchors).sum() / inv_tau  # logits are inv_tau a_i.b_j: Euler's rule for this product
    return loss, Gradient(for_anchors, scatter_sum(for_partners, layout), for_tau)


def _two_directions(
    inputs: LossInputs, inv_tau: Tensor, with_positives: bool, steps: Steps, wanted: bool
) -> tuple[Tensor, Gradient | None]:
    """1/2 [L(X, Y) + L(Y, X)]: one score matrix, its rows for one direction and its columns for the other.

    Each process makes the rows of its images; the columns' sums are put together from all processes. The gradient
    needs both sums, so scores are made a second time, unless all of them fitted into one chunk. As in the other
    functions, the products see deviations from the mean only; the constant that both means make is left out.
    """
    layout = inputs.layout
    mean_x, mean_y = inv_tau * inputs.x.mean(dim=0), inputs.y.mean(dim=0)
    images = inputs.x[layout.own] * inv_tau - mean_x
    texts = inputs.y - mean_y
    row_bias, column_bias = images @ mean_y, texts @ mean_x
    positives = (images * texts[layout.own]).sum(dim=1) + row_bias + column_bias[layout.own]
    images, texts = steps.operand(images), steps.operand(texts)
    column_sums = inputs.y.new_full((layout.total,), -torch.inf)
    row_sums = inputs.x.new_empty(len(images), 1)
    chunks = steps.chunks(len(images), layout.total)

    def scores(chunk: slice) -> Tensor:
        logits = steps.product("scores", images[chunk], texts.T).add_(row_bias[chunk, None]).add_(column_bias)
        return leave_out(logits, layout.own.start + chunk.start, inputs.caption_ids, with_positives)

    for chunk in chunks:
        logits = scores(chunk)
        row_sums[chunk] = steps.logsumexp_of_both(logits, column_sums)
    column_sums = _logsumexp_over_processes(column_sums, layout)
    loss = row_sums.sum() + column_sums[layout.own].sum() - 2 * positives.sum()
    loss = sum_over_processes(loss / (2 * layout.total), layout)
    if not wanted:
        return loss, None
    for_x = torch.empty(images.shape, dtype=steps.dtype, device=images.device)
    for_y = torch.zeros_like(inputs.y)
    row_weights, column_weights = torch.zeros_like(row_bias), torch.zeros_like(column_bias)
    for chunk in chunks:
        if len(chunks) > 1:
            logits = scores(chunk)
        first = layout.own.start + chunk.start
        weights = steps.softmax_of_both(logits, row_sums[chunk], column_sums, first, row_weights[chunk], column_weights)
        steps.add_product(for_x[chunk], weights, texts, keep=0)
        steps.add_product(for_y, weights.T, images[chunk])
    for_x.addcmul_(row_weights[:, None], mean_y).mul_(inv_tau / (2 * layout.total))
    for_y.addcmul_(column_weights[:, None], mean_x).div_(2 * layout.total)
    for_tau = sum_over_processes((inputs.x[layout.own] * for_x).sum() / inv_tau, layout)
    return loss, Gradient(for_x, scatter_sum(for_y, layout), for_tau)


def _logsumexp_over_processes(partial: Tensor, layout: RowLayout) -> Tensor:
    if layout.processes == 1:
        return partial
    one_each = RowLayout((1,) * layout.processes, layout.rank, layout.group)
    return gather_rows(partial[None], one_each).logsumexp(dim=0)
