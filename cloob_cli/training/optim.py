"""The optimizer and the learning rate: AdamW parameter groups, and schedules as plain functions of the step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import torch

from cloob_cli.recipe import OptimizerSection
from cloob_cli.training.muon import MuonWithAdamW, hidden_matrices

# Parameters with one of these in their name do not decay by the rule "names".
_NAMES_WITHOUT_DECAY = ("bn", "ln", "bias", "logit_scale")


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float,
    decay: Literal["matrices", "names"] = "matrices",
    without: Collection[torch.nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Two AdamW groups of the trainable parameters, those that decay and those that do not; none of `without`.

    By "matrices", parameters of two or more dimensions decay: matrices, kernels and positional embeddings. Gains,
    biases, the class token and the temperature have fewer; decaying them pulls the network's scale towards zero
    without regularizing anything. "names" is the reference program's rule: all decay whose name holds none of "bn",
    "ln", "bias" and "logit_scale"; `downsample.1.weight`, a BatchNorm's gain, then decays although no other gain does.
    """
    left_out = {id(parameter) for parameter in without}
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in left_out]

    def decays(name: str, parameter: torch.Tensor) -> bool:
        if decay == "names":
            return not any(part in name for part in _NAMES_WITHOUT_DECAY)
        return parameter.ndim >= 2

    return [
        {"params": [p for name, p in trainable if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if not decays(name, p)], "weight_decay": 0.0},
    ]


def build_optimizer(model: torch.nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`, with the fused step where torch has one for the device; beside Muon if asked.

    Raises:
        RecipeError: Muon is asked for and torch is too old for it, or the model has no matrix for it.
    """
    device = next(model.parameters()).device.type
    matrices = [p for p in hidden_matrices(model) if p.requires_grad] if section.name == "muon" else []
    adamw = torch.optim.AdamW(
        parameter_groups(model, section.weight_decay, section.decay, matrices),
        lr=section.learning_rate,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        fused=device in {"cpu", "cuda"},
    )
    if section.name == "adamw":
        return adamw
    return MuonWithAdamW(matrices, adamw, weight_decay=section.weight_decay, momentum=section.momentum)


def warmup_length(section: OptimizerSection, steps: int) -> int:
    """Warm-up in steps; of a run shorter than its warm-up, all of it."""
    wanted = section.warmup_steps if section.warmup_steps is not None else round(section.warmup_fraction * steps)
    return min(wanted, steps)


def learning_rate(step: int, steps: int, section: OptimizerSection) -> float:
    """The learning rate of step `step` (from 0) of a run of `steps` steps.

    Linear warm-up whose first step is already above zero (with `warmup_from_zero` it is zero), then the section's
    schedule. `cosine_restarts` goes `cycles` times from the full rate to zero, as ml-jku/cloob trains.
    """
    warmup = warmup_length(section, steps)
    if step < warmup:
        return section.learning_rate * (step + (not section.warmup_from_zero)) / warmup
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
