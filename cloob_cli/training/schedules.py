"""Settings that change along a run, as functions of the step's number: learning rate and image size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cloob_cli.recipe import OptimizerSection


def warmup_length(section: OptimizerSection, steps: int) -> int:
    """The warm-up in steps; of a run shorter than its warm-up, all of it."""
    length = section.warmup_steps if section.warmup_steps is not None else round(section.warmup_fraction * steps)
    return min(length, steps)


def learning_rate(step: int, steps: int, section: OptimizerSection, peak: float | None = None) -> float:
    """The learning rate of step `step` (from 0) of a run of `steps` steps; `peak` replaces the section's own.

    Linear warm-up whose first step is already above zero (with `warmup_from_zero` it is zero), then the section's
    schedule. `cosine_restarts` goes `cycles` times from the full rate to zero, as ml-jku/cloob trains.
    """
    highest = section.learning_rate if peak is None else peak
    warmup = warmup_length(section, steps)
    if step < warmup:
        return highest * (step + (not section.warmup_from_zero)) / warmup
    if section.schedule == "constant":
        return highest
    progress = (step - warmup) / max(1, steps - warmup)
    cycles = section.cycles if section.schedule == "cosine_restarts" else 1
    within = 1.0 if progress >= 1 else cycles * progress % 1.0
    return highest * 0.5 * (1 + math.cos(math.pi * within))


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
