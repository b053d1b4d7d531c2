"""Settings that change along a run, as functions of the step's number."""

from __future__ import annotations

from collections.abc import Sequence


def image_size(stages: Sequence[tuple[float, int]], step: int, steps: int, full_size: int) -> int:
    """Pixels a side of the images of step `step` (from 0) of a run of `steps` steps.

    Args:
        stages: (fraction of the steps, size from there on), in order; none: `full_size` always.
    """
    size = full_size
    for fraction, stage_size in stages:
        if step >= round(fraction * steps):
            size = stage_size
    return size
