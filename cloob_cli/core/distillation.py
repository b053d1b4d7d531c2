"""Losses that draw a model towards a teacher's embeddings of the same pairs.

Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation" (arXiv 2307.12732).
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn import functional as F

from cloob_cli.core.distributed import gather_rows, gather_with_gradient, row_layout


class TeacherProjection(nn.Module):
    """Linear maps from a model's embeddings [..., D] to the space of its teacher's [..., T], one for each tower."""

    def __init__(self, embed_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(embed_dim, teacher_dim, bias=False)
        self.text = nn.Linear(embed_dim, teacher_dim, bias=False)


def embeddings_loss(images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor) -> Tensor:
    """The mean squared distance of embeddings [N, D] to the teacher's [N, D], of images and texts alike ("feature
    mimicry"): a scalar between 0 and 4 for embeddings of unit norm.
    """
    distances = ((images - teacher_images).square().sum(-1), (texts - teacher_texts).square().sum(-1))
    return (distances[0].mean() + distances[1].mean()) / 2


def scores_loss(
    images: Tensor,
    texts: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    inv_tau: Tensor | float,
    teacher_inv_tau: float,
) -> Tensor:
    """The divergence of the batch's probabilities from the teacher's, KL(teacher, model), mean of both directions.

    Args:
        images, texts: [N, D], unit norm; the teacher's are [N, T], of any width.
    """
    own = inv_tau * images @ texts.T
    wanted = teacher_inv_tau * teacher_images @ teacher_texts.T
    kept = [
        F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
        for mine, theirs in ((own, wanted), (own.T, wanted.T))
    ]
    return (kept[0] + kept[1]) / 2


def joined(tensors: list[Tensor], group: distributed.ProcessGroup | None) -> list[Tensor]:
    """The rows of all processes of `group`, [N, ...] of [n, ...] each; gradients go to this process's own.

    Every process then computes the same loss, which is what averaging gradients over processes expects.
    """
    layout, _ = row_layout(len(tensors[0]), tensors[0].device, group)
    if layout.processes == 1:
        return tensors
    return [gather_with_gradient(one, layout) if one.requires_grad else gather_rows(one, layout) for one in tensors]


def teacher_projection(embed_dim: int, teacher_dim: int, seed: int) -> TeacherProjection:
    """New maps whose weights are a pure function of the sizes and the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TeacherProjection(embed_dim, teacher_dim)
