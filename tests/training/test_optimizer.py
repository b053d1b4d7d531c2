"""Schedules against torch's own schedulers and closed forms; which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from margins import close
from tiny_run import tiny_recipe

from cloob_cli.core.model import CloobModel
from cloob_cli.recipe import OptimizerSection
from cloob_cli.training.new_model import model_config
from cloob_cli.training.optimizer import build_optimizer, parameter_groups, set_learning_rate
from cloob_cli.training.schedules import learning_rate

pytestmark = pytest.mark.numeric

RATE = "float64; torch multiplies its rate up from step to step"


def test_warm_up_and_cosine_equal_torchs_schedulers():
    section = OptimizerSection(learning_rate=0.5, schedule="cosine", warmup_steps=7)
    steps = 50
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 7, end_factor=1.0, total_iters=6)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - 7)
    expected = []
    for step in range(steps):
        if step == 7:
            optimizer.param_groups[0]["lr"] = 0.5
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (warmup if step < 7 else cosine).step()
    close([learning_rate(step, steps, section) for step in range(steps)], expected, RATE, atol=1e-9)


def test_restarts_equal_torchs_warm_restarts():
    section = OptimizerSection(learning_rate=0.2, schedule="cosine_restarts", cycles=4, warmup_steps=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=25)
    for step in range(100):
        close(learning_rate(step, 100, section), optimizer.param_groups[0]["lr"], RATE, atol=1e-9)
        optimizer.step()
        restarts.step()


def test_first_step_moves_and_the_end_is_zero():
    section = OptimizerSection(learning_rate=1.0, warmup_fraction=0.1, schedule="cosine")
    rates = [learning_rate(step, 100, section) for step in range(101)]
    half = 0.5 * (1 + math.cos(math.pi * 0.5))
    close([rates[step] for step in (0, 9, 10, 55, 100)], [0.1, 1.0, 1.0, half, 0.0], RATE, atol=1e-12)


def test_constant_and_a_run_shorter_than_its_warm_up():
    section = OptimizerSection(learning_rate=1.0, warmup_steps=1000, schedule="constant")
    close(learning_rate(9, 10, section), 1.0, RATE, atol=1e-12)
    assert learning_rate(5000, 10_000, section) == 1.0


def test_gains_biases_and_temperature_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    model.temperature = torch.nn.Parameter(torch.zeros(()))
    decayed, kept = parameter_groups(model, 0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "2.weight"}
    assert decayed["weight_decay"] == 0.3
    assert {names[id(p)] for p in kept["params"]} == {"0.bias", "1.weight", "1.bias", "2.bias", "temperature"}
    assert kept["weight_decay"] == 0.0


def test_decay_by_name_is_the_reference_programs():
    """Of a ResNet's gains those of the shortcuts decay, as their name does not say that they are of a BatchNorm."""
    text = {"context_length": 8, "width": 16, "layers": 1, "heads": 2}
    vision = {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}
    recipe = tiny_recipe("x", model={"embed_dim": 16, "text": text, "vision": vision})
    with torch.device("meta"):
        model = CloobModel(model_config(recipe, 100))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        rule: {names[id(p)] for p in parameter_groups(model, 0.1, rule)[0]["params"]} for rule in ("matrices", "names")
    }
    assert decayed["matrices"] < decayed["names"]
    assert decayed["names"] - decayed["matrices"] == {f"visual.layer{n}.0.downsample.1.weight" for n in range(1, 5)}


def test_warm_up_from_zero_equals_lambdalr():
    section = OptimizerSection(learning_rate=0.5, schedule="constant", warmup_steps=4, warmup_from_zero=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    for step in range(7):
        assert learning_rate(step, 100, section) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()


def test_frozen_parameters_are_not_optimized():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerSection())
    assert [p for group in optimizer.param_groups for p in group["params"]] == [model.weight]
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
