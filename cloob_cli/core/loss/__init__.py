"""The contrastive losses: their definitions, and `contrastive_loss`, which gives the same numbers for any batch.

Begin with `definition.py`. Below it stands the tiled implementation: `retrieval.py` finds CLOOB's patterns,
`negatives.py` the sums over negatives, both by what `steps.py` (plain torch) or `triton_steps.py` does to a tile of
scores. docs/loss.md derives every line, in the same names.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cloob_cli.core.distributed import gather_with_gradient, sum_over_processes
from cloob_cli.core.loss.definition import clip_hopfield_loss, clip_loss, cloob_loss, hopfield_retrieve, infoloob_loss
from cloob_cli.core.loss.inputs import LossInputs, check_inputs
from cloob_cli.core.loss.negatives import Gradient, sums_over_negatives
from cloob_cli.core.loss.retrieval import Retrieval, small_scores
from cloob_cli.core.loss.steps import Steps
from cloob_cli.errors import LossInputError, UsageError, one_line

__all__ = ["clip_hopfield_loss", "clip_loss", "cloob_loss", "contrastive_loss", "hopfield_retrieve", "infoloob_loss"]

Objective = Literal["cloob", "infoloob", "clip", "clip_hopfield"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
WITH_RETRIEVAL = ("cloob", "clip_hopfield")
Implementation = Literal["auto", "definition", "tiled", "triton"]
Precision = Literal["fp32", "tf32", "bf16"]

TILED_FROM = 256  # from here on "tiled" is at least as fast as "definition" on a CPU (tests/benchmarks/bench_loss.py)


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    objective: Objective = "cloob",
    inv_tau: float | Tensor = 30.0,
    scale_hopfield: float = 8.0,
    *,
    caption_ids: Tensor | None = None,
    implementation: Implementation = "auto",
    precision: Precision | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """The loss that training calls: the numbers and gradients of the definitions for any N.

    Args:
        image_embeddings, text_embeddings: [N, D] each, rows of unit norm, row i of both is one pair. Of any floating
            point dtype; the arithmetic is in float32 whatever the autocast, in float64 if one of them is.
        objective: `cloob_loss`, `infoloob_loss`, `clip_loss` or `clip_hopfield_loss`.
        inv_tau: inverse temperature; a tensor of one element gets a gradient.
        scale_hopfield: beta, the inverse temperature of retrieval ("cloob" and "clip_hopfield").
        caption_ids: int64 [N]. Pairs with equal ids are not negatives of each other: their terms are left out of the
            sums over negatives, and of nothing else. Retrieval stores and finds them as before, and each still has
            its own positive. A row without any negative exists only where all ids are equal, which is refused.
        implementation: "definition" keeps N x N matrices, "tiled" does not; "triton" is "tiled" with fused kernels
            where these can serve (`kernels_obstacle`). "auto" is "tiled" from 256 pairs on, or several processes.
            Training measures instead which one is the fastest on a GPU (`training/loss_implementation.py`).
        precision: of the operands of the matrix products of "tiled" and "triton"; sums are float32 always. None is
            "fp32". Ignored for float64; "bf16" becomes "tf32" for scale_hopfield above 20. "definition" multiplies as
            torch is set to (`torch.backends.cuda.matmul`).
        process_group: the processes that hold the rest of the batch; None: the batch is all here. Each passes its own
            rows, in rank order; counts may differ.

    Returns:
        The scalar loss of the joint batch, the same number on every process. Its gradient is that of the loss for
        `inv_tau`, and for the embeddings it is the loss's gradient times the number of processes, so that the average
        over processes that DDP takes of parameter gradients is the gradient that one process with the joint batch has.

    Raises:
        LossInputError: see `check_inputs`; also an unknown objective or precision, or a scale_hopfield not above zero.
        UsageError: an unknown implementation.
    """
    if objective not in OBJECTIVES:
        raise LossInputError(f"unknown objective '{objective}'", f"use one of {', '.join(OBJECTIVES)}")
    if objective in WITH_RETRIEVAL and not 0 < scale_hopfield < float("inf"):
        raise LossInputError(f"scale_hopfield must be a finite number above zero, not {scale_hopfield}")
    inputs = check_inputs(image_embeddings, text_embeddings, inv_tau, caption_ids, process_group)
    if precision not in (None, "fp32", "tf32", "bf16"):
        raise LossInputError(f"unknown precision '{precision}'", "use fp32, tf32 or bf16")
    if implementation not in ("auto", "definition", "tiled", "triton"):
        raise UsageError(f"unknown implementation '{implementation}'", "use auto, definition, tiled or triton")
    if implementation == "auto":
        small = inputs.layout.processes == 1 and inputs.layout.total < TILED_FROM
        implementation = "definition" if small else "tiled"
    elif implementation == "triton" and kernels_obstacle(inputs.x.device, inputs.x.dtype):
        implementation = "tiled"
    return _loss(inputs, objective, scale_hopfield, implementation, precision or "fp32")


def _triton_steps() -> ModuleType:
    return importlib.import_module("cloob_cli.core.loss.triton_steps")  # triton exists for Linux only


def _loss(
    inputs: LossInputs, objective: Objective, scale_hopfield: float, implementation: str, precision: Precision
) -> Tensor:
    x, y, inv_tau = inputs.x, inputs.y, inputs.inv_tau
    if implementation == "definition":
        x, y = gather_with_gradient(x, inputs.layout), gather_with_gradient(y, inputs.layout)
        if objective in WITH_RETRIEVAL:
            retrieving = cloob_loss if objective == "cloob" else clip_hopfield_loss
            return retrieving(x, y, inv_tau, scale_hopfield, inputs.caption_ids)
        return (infoloob_loss if objective == "infoloob" else clip_loss)(x, y, inv_tau, inputs.caption_ids)
    if precision == "bf16" and objective in WITH_RETRIEVAL and not small_scores(inputs, scale_hopfield):
        precision = "tf32"  # multiplied by so large a scale, the rounding of bfloat16 would show in the gradient
    kind = _triton_steps().TritonSteps if implementation == "triton" else Steps
    inv_tau = inv_tau if isinstance(inv_tau, Tensor) else x.new_full((), inv_tau)
    steps = kind(x.device, x.dtype, precision)
    loss: Tensor = _TiledLoss.apply(  # type: ignore[no-untyped-call]
        x, y, inv_tau, inputs, objective, scale_hopfield, steps
    )
    return loss


# --- the tiled implementation -----------------------------------------------------------------------------------------


class _TiledLoss(torch.autograd.Function):
    """The scalar loss; its gradient is found with it: later it can only be multiplied by one number."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, inv_tau: Tensor, inputs: LossInputs, objective: str, beta: float, steps: Steps
    ) -> Tensor:
        with steps.prepared():
            in_sums = objective in ("clip", "clip_hopfield")  # InfoNCE keeps the positive among what it sums
            if objective in WITH_RETRIEVAL:
                loss, gradient = _after_retrieval(inputs, beta, steps, in_sums)
            else:
                loss, gradient = sums_over_negatives(x, y, inputs, steps, both=True, in_sums=in_sums)
            ctx.layout = inputs.layout
            if gradient:
                ctx.save_for_backward(*gradient[:2], sum_over_processes(gradient[2], inputs.layout))
            return sum_over_processes(loss, inputs.layout) / (2 * inputs.layout.total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_inv_tau = gradient / (2 * ctx.layout.total)
        for_rows = for_inv_tau * ctx.layout.processes  # DDP averages over processes: see contrastive_loss
        terms = zip((for_rows, for_rows, for_inv_tau), ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return (*(scale * saved if needs_grad else None for scale, saved, needs_grad in terms), *[None] * 4)


def _after_retrieval(inputs: LossInputs, beta: float, steps: Steps, in_sums: bool) -> tuple[Tensor, Gradient | None]:
    """The sums of L(U_x, U_y) + L(V_y, V_x), not divided by 2 N; with `in_sums` positives count in their sums."""
    retrieval = Retrieval(inputs, beta, steps)
    patterns = retrieval.patterns("u_x", "u_y", "v_x")
    loss, grad_inv_tau = inputs.x.new_zeros(()), inputs.x.new_zeros(())
    for anchors, partners in (("u_x", "u_y"), ("v_y", "v_x")):
        if anchors == "v_y":  # by itself, so that it need not wait in memory for its turn
            patterns |= retrieval.patterns("v_y")
        part, gradient = sums_over_negatives(patterns[anchors], patterns[partners], inputs, steps, in_sums=in_sums)
        loss += part
        if gradient:
            grad_inv_tau += gradient[2]
            for name, each in zip((anchors, partners), gradient, strict=False):
                retrieval.add_gradient(name, patterns.pop(name), each)
            del each, gradient
    return loss, (*retrieval.backward(), grad_inv_tau) if inputs.needs_grad else None


@cache
def kernels_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the Triton kernels cannot serve on `device`; None if they can.

    On the first call a few small losses are computed with them and with plain torch: what a driver, a compiler or a
    version of torch gets wrong is found here and not in a model.
    """
    if dtype != torch.float32:
        return f"they compute in float32, not {str(dtype).removeprefix('torch.')}"
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"they need a CUDA device, not {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    # Sizes that are multiples of nothing, and multiples of 16 as in training, with rows of more than one piece.
    sizes = 57, _triton_steps().ELEMENTS.value + 32
    objectives: tuple[Objective, ...] = ("cloob", "clip")
    limits: dict[Precision, float] = {"fp32": 1e-4, "bf16": 3e-2}  # well above rounding, well below any mistake
    for rows, objective, precision in product(sizes, objectives, limits):
        try:
            found, expected = (
                _small_gradient(device, name, rows, objective, precision) for name in ("triton", "tiled")
            )
        except Exception as problem:  # whatever a compiler or a driver may raise: plain torch serves
            return f"their check failed ({one_line(problem)})"
        error = float((found - expected).norm() / expected.norm())
        if not error <= limits[precision]:
            return f"their check found an error of {error:.1e} in {precision}"
    return None


def _small_gradient(
    device: torch.device, implementation: str, rows: int, objective: Objective, precision: Precision
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(rows, 24, generator=generator), dim=1).to(device).requires_grad_() for _ in "xy")
    _loss(check_inputs(x, y, 5.0), objective, 8.0, implementation, precision).backward()
    return torch.cat([each.grad for each in (x, y) if each.grad is not None])
