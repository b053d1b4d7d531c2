"""Positional embeddings of a square grid, fitted to images of another size.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929), section 3.2, interpolate them; here by a fixed
matrix, so that the same gradient comes out on every run and device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def fitted_positions(embedding: Tensor, height: int, width: int) -> Tensor:
    """Positions of a grid of height x width cells, bicubic and antialiased, from those of the model's own grid.

    Args:
        embedding: [1 + grid * grid, W]; the first is of the class or mean token and is kept.

    Returns:
        [1 + height * width, W]; `embedding` itself where the grid is the model's own.
    """
    grid = math.isqrt(len(embedding) - 1)
    if (height, width) == (grid, grid):
        return embedding
    # torch.compile looks through a cache, and warns that it does.
    make = _interpolation.__wrapped__ if torch.compiler.is_compiling() else _interpolation
    matrix = make(grid, height, width).to(embedding.device, embedding.dtype)
    with torch.autocast(embedding.device.type, enabled=False):
        return torch.cat([embedding[:1], matrix @ embedding[1:]])


@lru_cache(maxsize=16)
def _interpolation(grid: int, height: int, width: int) -> Tensor:
    """float32 [height * width, grid * grid]: what `interpolate` does to each cell alone."""
    with torch.inference_mode(False), torch.no_grad():  # kept, and used in training later
        cells = torch.eye(grid * grid, device="cpu").view(-1, 1, grid, grid)
        return F.interpolate(cells, (height, width), mode="bicubic", antialias=True).flatten(1).T.contiguous()
