"""Embeddings for the tests of the losses, and the distance of an implementation from the definition in float64."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from cloob_cli.core.loss import contrastive_loss

OBJECTIVES = ["cloob", "infoloob", "clip", "clip_hopfield"]


def unit_rows(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def alike(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings whose pairs are alike, as they are after some training; exact in float32."""
    x = unit_rows(n, d, 0)
    return x.float().double(), normalize(x + unit_rows(n, d, 1), dim=1).float().double()


def with_outlier(n: int, d: int, spread: float, opposite: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings in a cone of the given spread but for one text far from it, opposite to its middle or orthogonal."""
    middle = unit_rows(1, d, 9)
    x, y = (normalize(middle + spread * rows, dim=1) for rows in alike(n, d))
    across = unit_rows(1, d, 8) - (unit_rows(1, d, 8) @ middle.T) * middle
    y[n // 2] = -y[n // 2] if opposite else normalize(across, dim=1)[0]
    return x.float().double(), y.float().double()


def loss_and_gradient(x, y, dtype=torch.float64, implementation="definition", **options):
    x, y = (rows.detach().to(dtype).clone().requires_grad_() for rows in (x, y))
    loss = contrastive_loss(x, y, implementation=implementation, **options)
    loss.backward()
    return loss.item(), torch.cat([x.grad, y.grad]).double()


def relative_error(x, y, dtype=torch.float32, precision=None, **options) -> float:
    _, expected = loss_and_gradient(x, y, **options)
    _, found = loss_and_gradient(x, y, dtype, "tiled", precision=precision, **options)
    return float((found - expected).norm() / expected.norm())
