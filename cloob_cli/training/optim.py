"""The optimizer and the learning rate: AdamW parameter groups, and schedules as plain functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch

from cloob_cli.recipe import OptimizerSection


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups of the trainable parameters: matrices and kernels decay, everything else does not.

    Gains, biases, the class token and the temperature have fewer than two dimensions; decaying them pulls the
    network's scale towards zero without regularising anything (the same rule as in openai/CLIP's training).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: torch.nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, with the fused step where torch has one for the device."""
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(model, section.weight_decay),
        lr=section.learning_rate,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        fused=device in {"cpu", "cuda"},
    )


def warmup_length(section: OptimizerSection, steps: int) -> int:
    """Warm-up in steps; of a run shorter than its warm-up, all of it."""
    wanted = section.warmup_steps if section.warmup_steps is not None else round(section.warmup_share * steps)
    return min(wanted, steps)


def learning_rate(step: int, steps: int, section: OptimizerSection) -> float:
    """The learning rate of step `step` (from 0) of a run of `steps` steps.

    Linear warm-up whose first step is already above zero, then the section's schedule. `cosine_restarts` goes
    `cycles` times from the full rate to zero, as ml-jku/cloob trains.
    """
    warmup = warmup_length(section, steps)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    if section.schedule == "constant":
        return section.learning_rate
    progress = (step - warmup) / max(1, steps - warmup)
    cycles = section.cycles if section.schedule == "cosine_restarts" else 1
    within = 1.0 if progress >= 1 else cycles * progress % 1.0
    return section.learning_rate * 0.5 * (1 + math.cos(math.pi * within))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
