"""The implementation of the loss that a run takes, and the measurement behind it."""

from __future__ import annotations

import itertools

import pytest
import torch

from cloob_cli.core.distributed import RowLayout
from cloob_cli.core.loss import TILED_FROM
from cloob_cli.training import loss_implementation
from cloob_cli.training.loss_implementation import choose_implementation, measure_implementations

CPU = torch.device("cpu")


@pytest.fixture
def cost(monkeypatch):
    """Seconds that each implementation seems to take, in place of a clock; the losses themselves are computed."""
    seconds = {"definition": 3.0, "tiled": 2.0, "triton": 1.0}
    now, real = [0.0], loss_implementation.contrastive_loss
    ran = []

    def loss(x, y, objective, *, implementation, **options):
        ran.append((implementation, objective, tuple(x.shape)))
        now[0] += seconds[implementation] if len(ran) % 2 == 0 else 100.0  # the first time compiles
        return real(x, y, objective, implementation="tiled", **options)

    monkeypatch.setattr(loss_implementation, "contrastive_loss", loss)
    monkeypatch.setattr(loss_implementation.time, "perf_counter", lambda: now[0])
    seconds["ran"] = ran
    return seconds


def test_on_a_cpu_the_number_of_pairs_decides():
    assert choose_implementation("auto", TILED_FROM - 1, 8, CPU).name == "definition"
    assert choose_implementation("auto", TILED_FROM, 8, CPU) == ("tiled", "256 pairs on a CPU")


def test_a_wish_is_followed_where_it_can_be():
    assert choose_implementation("definition", 5000, 8, CPU) == ("definition", "as asked for")
    assert choose_implementation("tiled", 8, 8, CPU) == ("tiled", "as asked for")
    found = choose_implementation("triton", 8, 8, CPU)
    assert found == ("tiled", "the Triton kernels cannot serve: they need a CUDA device, not cpu")


def test_the_fastest_at_the_runs_own_shape_is_taken(cost):
    found = measure_implementations(RowLayout((48,)), 16, CPU, "infoloob", "fp32", kernels=True, scale_hopfield=8.0)
    assert found == ("triton", "measured: tiled 2000.0 ms, triton 1000.0 ms, definition 3000.0 ms")
    names = [name for name, _ in itertools.groupby(cost["ran"])]
    assert names == [(name, "infoloob", (48, 16)) for name in ("tiled", "triton", "definition")]
    cost["definition"] = 0.5
    assert (
        measure_implementations(RowLayout((48,)), 16, CPU, "cloob", "fp32", kernels=False, scale_hopfield=8.0).name
        == "definition"
    )


def test_a_batch_too_large_for_the_definition_is_not_tried_with_it(cost, monkeypatch):
    monkeypatch.setattr(loss_implementation, "_DEFINITION_UP_TO", 47)
    found = measure_implementations(RowLayout((48,)), 16, CPU, "cloob", "fp32", kernels=False, scale_hopfield=8.0)
    assert found == ("tiled", "measured: tiled 2000.0 ms")
