"""Weights between those of two models of one architecture (WiSE-FT, Wortsman et al., arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def blended(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * start + alpha * end, tensor by tensor in at least float32, in the dtype of `end`.

    Exactly `start` at 0 and `end` at 1, and exactly what both have where they are equal. Integers are those of `end`.
    """
    found = {}
    for name, last in end.items():
        first = start[name].to(last.device)
        if last.is_floating_point() and alpha != 1:
            dtype = torch.promote_types(last.dtype, torch.float32)
            last = torch.lerp(first.to(dtype), last.to(dtype), alpha).to(last.dtype)
        found[name] = last
    return found
