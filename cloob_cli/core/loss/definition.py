"""The contrastive losses, as one would write them on a board.

Notation: X are the image embeddings and Y the text embeddings, both [N, D] with rows of unit norm; row i of X and row i
of Y belong to the same pair; every other row is a negative. docs/loss.md derives the tiled implementation from these.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloob_cli.core.loss.inputs import check_inputs


def hopfield_retrieve(queries: Tensor, stored: Tensor, scale_hopfield: float | Tensor) -> Tensor:
    """R(Q; S) = normalize(softmax(beta Q S^T) S): the answer of a modern Hopfield network with the patterns S to Q.

    Shapes: queries [N, D], stored [M, D] -> unit-norm [N, D]. `scale_hopfield` is beta. Source: CLOOB (Fürst et al.,
    arXiv 2110.11316), the update rule of modern Hopfield networks; `hopfield_retrieval` in ml-jku/cloob,
    src/training/methods.py.
    """
    return normalize(torch.softmax(scale_hopfield * queries @ stored.T, dim=1) @ stored, dim=1)


def leave_one_out(anchors: Tensor, partners: Tensor, inv_tau: float | Tensor, not_negative: Tensor) -> Tensor:
    """L(A, B) = mean_i( logsumexp_{j: j is a negative of i}(inv_tau a_i.b_j) - inv_tau a_i.b_i ).

    InfoLOOB (Poole et al. 2019, equation 12, the leave-one-out upper bound; CLOOB's L_InfoLOOB). The positive is left
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
    return _after_retrieval(scale_hopfield, *_prepare(image_embeddings, text_embeddings, inv_tau, caption_ids))


def clip_hopfield_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    inv_tau: float | Tensor,
    scale_hopfield: float | Tensor,
    caption_ids: Tensor | None = None,
) -> Tensor:
    """InfoNCE after retrieval: as `cloob_loss`, but the sum of each row also holds the positive.

    The CLOOB paper's ablation "InfoNCE with Hopfield", which tells what each of its two ideas does.

    Arguments and errors: see `contrastive_loss`. Returns a scalar.
    """
    return _after_retrieval(scale_hopfield, *_prepare(image_embeddings, text_embeddings, inv_tau, caption_ids, True))


def _after_retrieval(
    scale_hopfield: float | Tensor, x: Tensor, y: Tensor, inv_tau: float | Tensor, not_negative: Tensor
) -> Tensor:
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
    x, y, inv_tau, left_out = _prepare(image_embeddings, text_embeddings, inv_tau, caption_ids, True)
    with torch.autocast(x.device.type, enabled=False):
        logits = inv_tau * x @ y.T
        summed = logits.masked_fill(left_out, -torch.inf)
        return (summed.logsumexp(dim=1) + summed.logsumexp(dim=0) - 2 * logits.diagonal()).mean() / 2


def _prepare(
    images: Tensor, texts: Tensor, inv_tau: float | Tensor, caption_ids: Tensor | None, in_sums: bool = False
) -> tuple[Tensor, Tensor, float | Tensor, Tensor]:
    """Checked embeddings in the dtype to compute in, inv_tau, and bool [N, N]: pairs that are no negatives of each
    other, with `in_sums` but for the positives, which then count like one.
    """
    inputs = check_inputs(images, texts, inv_tau, caption_ids)
    ids = inputs.caption_ids
    if ids is None:
        ids = torch.arange(len(inputs.x), device=inputs.x.device)
    equal = ids[:, None] == ids[None, :]
    return inputs.x, inputs.y, inputs.inv_tau, equal.fill_diagonal_(False) if in_sums else equal
