"""A run that learns nothing says so; one that learns, or has not had the time to, says nothing of it."""

from __future__ import annotations

import math

import pytest
import torch

from cloob_cli.core.loss import contrastive_loss
from cloob_cli.recipe import ObjectiveSection
from cloob_cli.training.collapse_watch import CollapseWatch


def watch(name: str, warm_up: int = 0) -> CollapseWatch:
    return CollapseWatch(ObjectiveSection(name=name), batch_size=32, warm_up=warm_up)


@pytest.mark.parametrize("name", ["cloob", "infoloob", "clip", "clip_hopfield"])
def test_equal_embeddings_are_told_once_on_the_way_and_at_the_end(name):
    one = torch.nn.functional.normalize(torch.ones(32, 8) + 1e-4 * torch.randn(32, 8), dim=1)
    loss = float(contrastive_loss(one, one.flip(0), objective=name, inv_tau=30.0, scale_hopfield=8.0))
    watched = watch(name)
    told = [watched.add(step, [loss] * 10) for step in range(10, 310, 10)]
    assert [number for number, text in enumerate(told) if text] == [9]  # after a hundred steps
    assert "for 100 steps" in told[9]
    assert "warmup_steps" in told[9]
    assert "for 300 steps" in watched.at_the_end()


def test_a_run_that_learns_or_is_warming_up_is_left_in_peace():
    learning, warming = watch("infoloob"), watch("infoloob", warm_up=200)
    for step in range(10, 210, 10):
        assert learning.add(step, [math.log(31) - 0.1] * 10) is None
        assert warming.add(step, [math.log(31)] * 10) is None
    assert learning.at_the_end() is None
    assert warming.at_the_end() is None
    recovered = watch("infoloob")
    recovered.add(90, [math.log(31)] * 90)
    recovered.add(100, [1.0] * 10)
    assert recovered.at_the_end() is None
