"""The Triton kernels without a GPU: through the interpreter for their numbers, through the compiler for an H100."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from margins import within

from cloob_cli.core.loss import contrastive_loss, kernels_obstacle

pytest.importorskip("triton", reason="the package triton exists for Linux only")

WORKER = Path(__file__).parents[1] / "helpers" / "loss_kernels_run.py"


def check(mode: str, **environment: str) -> dict:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, str(WORKER), mode], env=kept | environment, capture_output=True, text=True, timeout=500
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.numeric
@pytest.mark.parametrize(("mode", "cases"), [("short", 2), pytest.param("interpret", 6, marks=pytest.mark.slow)])
def test_the_loss_with_interpreted_kernels_equals_the_definition(mode, cases):
    report = check(mode, TRITON_INTERPRET="1")
    assert report.pop("obstacle", None) is None
    assert len(report) == cases
    for name, error in report.items():
        within(error, 5 * 2**-8 if "bf16" in name else 1e-5, "docs/loss.md, Exactness: as the plain steps")


@pytest.mark.parametrize(("mode", "kinds"), [("compile-short", 1), pytest.param("compile", 3, marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_an_h100(tmp_path, mode, kinds):
    compiled = check(mode, TRITON_CACHE_DIR=str(tmp_path))
    flags = {"exponentials_kernel": 2, "softmax_gradient_kernel": 2, "softmax_kernel": 1}
    assert compiled == {name: kinds * count for name, count in flags.items()}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves on the CPU")
def test_without_a_gpu_plain_torch_serves():
    assert kernels_obstacle(torch.device("cpu"), torch.float32) == "they need a CUDA device, not cpu"
    assert kernels_obstacle(torch.device("cuda"), torch.float64) == "they compute in float32, not float64"
    x = torch.nn.functional.normalize(torch.randn(300, 8), dim=1)
    assert contrastive_loss(x, x, implementation="triton") == contrastive_loss(x, x, implementation="tiled")
