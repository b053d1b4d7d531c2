"""The released models' sizes and layouts through convert, save, load and encode, in 4 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from margins import within

from tests.helpers import full_size

FULL = ["RN50", "RN50x4", "ViT-B-16", "crowsonkb"]
PARAMETERS = {"RN50": 102_007_137, "RN50x4": 178_300_601, "ViT-B-16": 149_620_737}  # golden/shapes


def run(task: str, name: str, folder: Path) -> str:
    command = [sys.executable, full_size.__file__, task, name, str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.numeric
@pytest.mark.parametrize(
    "name",
    ["small-RN50", *(pytest.param(name, marks=pytest.mark.slow) for name in ("small-crowsonkb", *FULL))],
)
def test_a_released_model_s_way(name: str, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="peak memory is not measured on Windows")
    run("write", name, tmp_path)
    result = json.loads(run("convert", name, tmp_path))
    print(name, result)
    assert result["format"] == ("crowsonkb" if name.endswith("crowsonkb") else "mljku")
    within(result["image_error"], 1e-5, "unit rows in float32 through a dozen layers")
    within(result["text_error"], 1e-5, "unit rows in float32 through a dozen layers")
    assert result["gigabytes"] < 4
    if name in PARAMETERS:
        assert result["parameters"] == PARAMETERS[name]
