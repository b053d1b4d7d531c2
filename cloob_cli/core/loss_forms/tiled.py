"""The exact losses in memory linear in the batch: tiles of the score matrices, made, used and forgotten.

docs/loss.md derives every line, in the same names. The gradient is computed together with the loss: later it can only
be multiplied by one number, which is what the backward pass does. What a tile goes through is in `steps.py` (plain
torch) and `triton_steps.py` (Triton).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloob_cli.core.gather import sum_over_processes
from cloob_cli.core.loss_forms.chunks import Gradient
from cloob_cli.core.loss_forms.directions import two_directions
from cloob_cli.core.loss_forms.inputs import LossInputs
from cloob_cli.core.loss_forms.leave_one_out import leave_one_out_sums
from cloob_cli.core.loss_forms.retrieval import Retrieval
from cloob_cli.core.loss_forms.steps import Steps


def tiled_loss(inputs: LossInputs, objective: str, scale_hopfield: float, steps: Steps) -> Tensor:
    """The scalar loss of `contrastive_loss`, differentiable once with respect to x, y and inv_tau."""
    x, y, inv_tau = inputs.x, inputs.y, inputs.inv_tau
    tau = inv_tau if isinstance(inv_tau, Tensor) else x.new_full((), inv_tau)
    return _TiledLoss.apply(x, y, tau, inputs, objective, scale_hopfield, steps)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, inv_tau, inputs: LossInputs, objective, scale_hopfield, steps: Steps):
        with steps.prepared():
            if objective == "cloob":
                loss, result = _cloob(inputs, scale_hopfield, steps)
            else:
                loss, result = two_directions(inputs, objective == "clip", steps)
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
            *[None] * 4,
        )


def _cloob(inputs: LossInputs, beta: float, steps: Steps) -> tuple[Tensor, Gradient | None]:
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
        lengths = {name: steps.normalize_rows(patterns[name]) for name in (anchors, partners)}
        part, gradient = leave_one_out_sums(patterns[anchors], patterns[partners], inputs, steps)
        loss += part
        if gradient is None:
            continue
        for_tau += gradient.inv_tau
        for name, for_pattern in ((anchors, gradient.left), (partners, gradient.right)):
            # The 1/(2N) of the mean goes in here.
            steps.pull_through_normalization(for_pattern, patterns.pop(name), lengths[name], 1 / (2 * layout.total))
            pulled[name] = retrieval.pulled(name, for_pattern)
        del gradient, for_pattern
    loss = sum_over_processes(loss, layout) / (2 * layout.total)
    if not inputs.wanted.embeddings:
        return loss, None
    for_x, for_y = retrieval.backward(pulled)
    return loss, Gradient(for_x, for_y, sum_over_processes(for_tau, layout) / (2 * layout.total))
