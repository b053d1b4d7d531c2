"""One version, wherever it is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import cloob_cli

ROOT = Path(__file__).resolve().parents[1]


def test_every_file_names_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == cloob_cli.__version__
    assert f"\nversion: {cloob_cli.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
