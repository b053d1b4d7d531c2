"""Checks of the losses' inputs, before any arithmetic: shapes, dtypes, finiteness."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cloob_cli.core.distributed import RowLayout, gather_rows, largest_over_processes, row_layout
from cloob_cli.errors import LossInputError, NonFiniteEmbeddingsError


@dataclass(frozen=True)
class LossInputs:
    """Embeddings of this process, `x` and `y` [n, D], in the dtype that the loss computes in, and facts of all
    processes: `caption_ids` [N], the largest norm of an embedding, and if any needs a gradient. `inv_tau` may need one
    too; the numbers are on the host.
    """

    x: Tensor
    y: Tensor
    inv_tau: float | Tensor
    caption_ids: Tensor | None
    layout: RowLayout
    needs_grad: bool
    largest_norm: float
    inv_tau_value: float


def check_inputs(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    inv_tau: float | Tensor,
    caption_ids: Tensor | None = None,
    process_group: ProcessGroup | None = None,
) -> LossInputs:
    """Check and convert. float64 stays; every other dtype becomes float32.

    A loss of embeddings that are not finite would be found out later anyway, but here it can be told what is wrong. The
    price is one read of a few numbers by the host; on a GPU it waits for the towers' forward pass, which the loss needs
    finished in any case, and the loop that reads the loss waits once more. The numbers read also bound every logit,
    which lets the tiled implementation leave out the search for row maxima.

    Raises:
        NonFiniteEmbeddingsError: values that are not finite, on any process; all processes raise it.
        LossInputError: shapes that differ or are not [N, D], a dtype that is not floating point, fewer than two pairs
            (over all processes), inv_tau not above zero, caption_ids of a wrong shape or dtype or all equal; on all
            processes where widths differ or only some have caption_ids.
    """
    _check_shapes(image_embeddings, text_embeddings, inv_tau, caption_ids)
    layout, dtype, needs_grad = _agree(image_embeddings, text_embeddings, inv_tau, caption_ids, process_group)
    x, y = image_embeddings.to(dtype), text_embeddings.to(dtype)
    if isinstance(inv_tau, Tensor):
        inv_tau = inv_tau.reshape(()).to(device=x.device, dtype=dtype)
    if layout.total < 2:
        raise LossInputError(
            f"a contrastive loss needs at least two pairs, not {layout.total}",
            "every other pair of the batch is a negative; use a larger batch",
        )
    with torch.no_grad():
        caption_ids = None if caption_ids is None else gather_rows(caption_ids.contiguous(), layout)
        norm, tau_read, captions_differ = _read_bounds(x, y, inv_tau, caption_ids, layout)
    if not math.isfinite(norm):
        raise NonFiniteEmbeddingsError(
            "the embeddings hold values that are not finite", "lower the learning rate, or clip"
        )
    if not (math.isfinite(tau_read) and tau_read > 0):
        raise LossInputError(f"inv_tau must be a finite number above zero, not {tau_read}")
    if not captions_differ:
        raise LossInputError(
            "all pairs of the batch have the same caption, so that none has a negative",
            "use a larger batch, or leave equal captions among the negatives",
        )
    return LossInputs(x, y, inv_tau, caption_ids, layout, needs_grad, norm, tau_read)


def _check_shapes(x: Tensor, y: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None) -> None:
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] == 0:
        raise LossInputError(
            f"image and text embeddings must be [N, D] tensors of one shape, not {list(x.shape)} and {list(y.shape)}"
        )
    if not (x.is_floating_point() and y.is_floating_point()):
        raise LossInputError(f"embeddings must be floating point, not {x.dtype} and {y.dtype}")
    if x.device != y.device:
        raise LossInputError(f"image and text embeddings must be on one device, not {x.device} and {y.device}")
    if isinstance(inv_tau, Tensor) and inv_tau.numel() != 1:
        raise LossInputError(f"inv_tau must be one number, not a tensor of shape {list(inv_tau.shape)}")
    if caption_ids is None:
        return
    if caption_ids.shape != x.shape[:1] or caption_ids.dtype != torch.int64 or caption_ids.device != x.device:
        raise LossInputError(
            f"caption_ids must be int64 [{len(x)}] on {x.device}, "
            f"not {caption_ids.dtype} {list(caption_ids.shape)} on {caption_ids.device}"
        )


def _agree(
    x: Tensor, y: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None, group: ProcessGroup | None
) -> tuple[RowLayout, torch.dtype, bool]:
    """Rows, dtype and needed gradients of all processes: from here on they do the same, or would wait for ever."""
    tensors = [x, y, *([inv_tau] if isinstance(inv_tau, Tensor) else [])]
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    double = torch.float64 in (x.dtype, y.dtype)
    layout, told = row_layout(len(x), x.device, group, [x.shape[1], caption_ids is not None, double, needs_grad])
    widths, with_captions, doubles, needs = (set(facts) for facts in zip(*told, strict=True))
    if len(widths) > 1:
        raise LossInputError(f"embeddings of different widths on different processes: {sorted(widths)}")
    if len(with_captions) > 1:
        raise LossInputError("caption_ids on some processes and not on others")
    return layout, torch.float64 if any(doubles) else torch.float32, any(needs)


def _read_bounds(
    x: Tensor, y: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None, layout: RowLayout
) -> tuple[float, float, bool]:
    """The largest row norm of all processes (infinite if any value is not finite), inv_tau, and if two captions differ.

    All processes get the same answers.
    """
    norms = [torch.linalg.vector_norm(rows, dim=1) for rows in (x, y)]
    largest = torch.cat([*norms, x.new_zeros(1)]).amax()  # a process may have no rows
    largest = largest_over_processes(largest.nan_to_num(nan=math.inf, posinf=math.inf), layout)
    different = torch.ones_like(largest) if caption_ids is None else (caption_ids != caption_ids[0]).any().to(largest)
    tau = inv_tau if isinstance(inv_tau, Tensor) else torch.full_like(largest, float(inv_tau))
    norm, tau_read, captions_differ = torch.stack([largest, tau.detach(), different]).tolist()
    return norm, tau_read if isinstance(inv_tau, Tensor) else float(inv_tau), bool(captions_differ)
