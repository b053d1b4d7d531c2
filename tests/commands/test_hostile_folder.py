"""Folders among whose images are hostile ones of every kind: rows, reasons, exit code and memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import peak_memory
from hostile_images import save_hostile_images
from margins import close
from tiny_model import RESNET, save_images, save_tiny_model

UNIT_ROWS = "elements below 1 through a dozen layers in float32: 16 EPS"

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(sys.platform == "win32", reason="resource usage of a child"),
]


def embed(folder: Path, source: str, budget: str) -> int:
    """Embed a folder with four threads; the peak of resident memory in bytes."""
    code, peak = peak_memory(
        "embed", source, "-o", f"{source}.npy", "-m", "model", "--memory-budget", budget, "--workers", 4, "-q",
        cwd=folder,
    )  # fmt: skip
    assert code == (0 if source == "plain" else 3)
    return peak


def check_rows(folder: Path, reasons: dict[str, str], good: list[str]) -> None:
    """Every image that can be read has the row that it has alone; every other one is listed with its reason."""
    paths = pq.read_table(folder / "mixed.parquet").column("path").to_pylist()
    rows = np.load(folder / "mixed.npy")
    failures = [json.loads(line) for line in (folder / "mixed.failures.jsonl").read_text().splitlines()]
    found = {Path(one["path"]).name: one["reason"] for one in failures}
    assert [Path(path).name for path in paths] == good, found
    assert len(rows) == len(good)
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found[name], (name, found[name])
        assert "\n" not in found[name]
    names = pq.read_table(folder / "plain.parquet").column("path").to_pylist()
    plain = dict(zip(names, np.load(folder / "plain.npy"), strict=True))
    for path, row in zip(paths, rows, strict=True):
        close(np.linalg.norm(row), 1, UNIT_ROWS, atol=2e-6)
        alone = plain.get(path.replace("mixed", "plain"))
        if alone is not None:
            close(row, alone, UNIT_ROWS, atol=2e-6)


def make(folder: Path, count: int, hostile: int, side: int) -> tuple[dict[str, str], list[str]]:
    """`count` images in "mixed", `hostile` of them hostile, and the others once more in "plain"."""
    save_tiny_model(folder / "model", RESNET)
    reasons, readable = save_hostile_images(folder / "mixed", side)
    assert len(reasons) >= 40
    # The rest of the hostile ones are further copies of the cheap kinds.
    for number in range(max(0, hostile - len(reasons) - len(readable))):
        name = list(reasons)[number % len(reasons)]
        copy = f"{Path(name).stem} {number}{Path(name).suffix}"
        (folder / "mixed" / copy).write_bytes((folder / "mixed" / name).read_bytes())
        reasons[copy] = reasons[name]
    ordinary = count - len(reasons) - len(readable)
    good = readable
    for place in ("mixed", "plain"):
        save_images(folder / place, ordinary, size=(320, 240), suffix=".jpg")
    good = sorted([*readable, *(f"{number:04}.jpg" for number in range(ordinary))])
    return reasons, good


def test_forty_hostile_kinds_within_a_small_budget(tmp_path: Path) -> None:
    reasons, good = make(tmp_path, 120, 75, side=1600)
    plain = embed(tmp_path, "plain", "150MB")
    peak = embed(tmp_path, "mixed", "150MB")
    check_rows(tmp_path, reasons, good)
    # Above the images' own share there are decoders' code and the allocator's leftovers: as much again, at most.
    print(f"peak resident memory: {peak / 1e6:.0f} MB, of plain images {plain / 1e6:.0f} MB")
    assert peak - plain < 2 * 150e6


@pytest.mark.slow
def test_a_thousand_images_a_hundred_hostile(tmp_path: Path) -> None:
    reasons, good = make(tmp_path, 1000, 100, side=9000)
    embed(tmp_path, "plain", "1GB")
    peak = embed(tmp_path, "mixed", "1GB")
    print(f"peak resident memory: {peak / 1e9:.2f} GB")
    assert len(good) + len(reasons) == 1000
    check_rows(tmp_path, reasons, good)
    assert peak < 1.5e9
