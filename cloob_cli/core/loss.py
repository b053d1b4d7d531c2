"""The contrastive losses, as one would write them on a board, and the door to their faster forms.

Notation: X are the image embeddings and Y the text embeddings, both [N, D] with rows of unit norm; row i of X and
row i of Y belong to the same pair; every other row is a negative. docs/loss.md derives the fast forms from these.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cloob_cli.core.gather import gather_differentiably
from cloob_cli.core.loss_forms.choice import choose_implementation, make_steps
from cloob_cli.core.loss_forms.inputs import LossInputs, check_inputs
from cloob_cli.core.loss_forms.retrieval_common import small_scores
from cloob_cli.core.loss_forms.tiled import tiled_loss
from cloob_cli.errors import LossInputError

Objective = Literal["cloob", "infoloob", "clip"]
Implementation = Literal["auto", "definition", "tiled", "triton"]
Precision = Literal["fp32", "tf32", "bf16"]


def hopfield_retrieve(queries: Tensor, stored: Tensor, scale_hopfield: float | Tensor) -> Tensor:
    """R(Q; S) = normalize(softmax(beta Q S^T) S): what a modern Hopfield network with the patterns S gives back for Q.

    Shapes: queries [N, D], stored [M, D] -> unit-norm [N, D]. `scale_hopfield` is beta. Source: CLOOB (Fürst et al.,
    arXiv 2110.11316), the update rule of modern Hopfield networks; `hopfield_retrieval` in ml-jku/cloob,
    src/training/methods.py.
    """
    return normalize(torch.softmax(scale_hopfield * queries @ stored.T, dim=1) @ stored, dim=1)


def leave_one_out(anchors: Tensor, partners: Tensor, inv_tau: float | Tensor, not_negative: Tensor) -> Tensor:
    """L(A, B) = mean_i( logsumexp_{j: j is a negative of i}(inv_tau a_i.b_j) - inv_tau a_i.b_i ).

    InfoLOOB (Poole et al. 2019, equation 12, the leave-one-out upper bound; CLOOB's L_InfoLOOB). The positive is taken
    out of the sum before it is formed, not subtracted from it. `not_negative`: bool [N, N], true on the diagonal.
    """
    logits = inv_tau * anchors @ partners.T
    return (logits.masked_fill(not_negative, -torch.inf).logsumexp(dim=1) - logits.diagonal()).mean()


def cloob_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    inv_tau: float | Tensor,
    scale_hopfield: float | Tensor,
    caption_ids: Tensor | None = None,
) -> Tensor:
    """The CLOOB loss: 1/2 [L(R(X; X), R(Y; X)) + L(R(Y; Y), R(X; Y))], with `hopfield_retrieve` and `leave_one_out`.

    Scale: this is the mean log-odds of the two directions, not multiplied by tau. ml-jku/cloob
    (src/training/methods.py) returns 2 / inv_tau times this number; crowsonkb/cloob-training
    (cloob_training/loss.py) returns this number.

    Arguments and errors: see `contrastive_loss`. Returns a scalar.
    """
    x, y, inv_tau, not_negative = _prepare(image_embeddings, text_embeddings, inv_tau, caption_ids)
    with torch.autocast(x.device.type, enabled=False):
        images_from_images, texts_from_images = (hopfield_retrieve(queries, x, scale_hopfield) for queries in (x, y))
        images_from_texts, texts_from_texts = (hopfield_retrieve(queries, y, scale_hopfield) for queries in (x, y))
        loss_over_images = leave_one_out(images_from_images, texts_from_images, inv_tau, not_negative)
        loss_over_texts = leave_one_out(texts_from_texts, images_from_texts, inv_tau, not_negative)
        return (loss_over_images + loss_over_texts) / 2


def infoloob_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None = None
) -> Tensor:
    """InfoLOOB without retrieval: 1/2 [L(X, Y) + L(Y, X)], with `leave_one_out`. Scale as `cloob_loss`.

    Arguments and errors: see `contrastive_loss`. Returns a scalar.
    """
    x, y, inv_tau, not_negative = _prepare(image_embeddings, text_embeddings, inv_tau, caption_ids)
    with torch.autocast(x.device.type, enabled=False):
        return (leave_one_out(x, y, inv_tau, not_negative) + leave_one_out(y, x, inv_tau, not_negative)) / 2


def clip_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None = None
) -> Tensor:
    """InfoNCE, CLIP's loss (Radford et al., arXiv 2103.00020, figure 3): as `infoloob_loss`, but the sum of each row
    also holds the positive, so that both directions are cross-entropies.

    Arguments and errors: see `contrastive_loss`. Returns a scalar.
    """
    x, y, inv_tau, not_negative = _prepare(image_embeddings, text_embeddings, inv_tau, caption_ids)
    with torch.autocast(x.device.type, enabled=False):
        logits = inv_tau * x @ y.T
        left_out = not_negative.fill_diagonal_(False)
        summed = logits.masked_fill(left_out, -torch.inf)
        return (summed.logsumexp(dim=1) + summed.logsumexp(dim=0) - 2 * logits.diagonal()).mean() / 2


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
    """The loss that training calls: the numbers and gradients of the definitions above for any N.

    Args:
        image_embeddings, text_embeddings: [N, D] each, rows of unit norm, row i of both is one pair. Of any floating
            point format; the arithmetic is in float32 whatever the autocast, in float64 if one of them is.
        objective: which of `cloob_loss`, `infoloob_loss` and `clip_loss`.
        inv_tau: inverse temperature; a tensor of one element gets a gradient.
        scale_hopfield: beta, the inverse temperature of retrieval ("cloob" only).
        caption_ids: int64 [N]. Pairs with equal ids are not negatives of each other: their terms are left out of the
            sums over negatives, and of nothing else. Retrieval stores and finds them as before, and each still has
            its own positive. A row without any negative exists only where all ids are equal, which is refused.
        implementation: "definition" keeps N x N matrices, "tiled" does not, "triton" is "tiled" with fused kernels;
            "auto" takes the fastest (`loss_forms.choice.choose_implementation`, which also says why).
        precision: number format of what enters the matrix products of "tiled" and "triton"; sums are float32 always.
            None is "fp32". Ignored for float64; "bf16" becomes "tf32" for scale_hopfield above 20. "definition"
            multiplies as torch is set to (`torch.backends.cuda.matmul`).
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
    if objective not in ("cloob", "infoloob", "clip"):
        raise LossInputError(f"unknown objective '{objective}'", "use cloob, infoloob or clip")
    if objective == "cloob" and not 0 < scale_hopfield < float("inf"):
        raise LossInputError(f"scale_hopfield must be a finite number above zero, not {scale_hopfield}")
    inputs = check_inputs(image_embeddings, text_embeddings, inv_tau, caption_ids, process_group)
    if precision not in (None, "fp32", "tf32", "bf16"):
        raise LossInputError(f"unknown precision '{precision}'", "use fp32, tf32 or bf16")
    device, dtype, layout = inputs.x.device, inputs.x.dtype, inputs.layout
    choice = choose_implementation(device, dtype, layout.total, layout.processes, implementation)
    if choice.name == "definition":
        return _definition(inputs, objective, scale_hopfield)
    if precision == "bf16" and objective == "cloob" and not small_scores(inputs, scale_hopfield):
        precision = "tf32"  # multiplied by so large a scale, the rounding of bfloat16 would show in the gradient
    return tiled_loss(inputs, objective, scale_hopfield, make_steps(choice, device, dtype, precision))


def _definition(inputs: LossInputs, objective: Objective, scale_hopfield: float) -> Tensor:
    x, y = (gather_differentiably(rows, inputs.layout) for rows in (inputs.x, inputs.y))
    if objective == "cloob":
        return cloob_loss(x, y, inputs.inv_tau, scale_hopfield, inputs.caption_ids)
    loss = infoloob_loss if objective == "infoloob" else clip_loss
    return loss(x, y, inputs.inv_tau, inputs.caption_ids)


def _prepare(
    image_embeddings: Tensor, text_embeddings: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None
) -> tuple[Tensor, Tensor, float | Tensor, Tensor]:
    """Checked embeddings in the format to compute in, and bool [N, N]: which pairs are no negatives of each other."""
    inputs = check_inputs(image_embeddings, text_embeddings, inv_tau, caption_ids)
    ids = inputs.caption_ids
    if ids is None:
        ids = torch.arange(len(inputs.x), device=inputs.x.device)
    return inputs.x, inputs.y, inputs.inv_tau, ids[:, None] == ids[None, :]
