"""Recipes that start from a model, filled in as the command does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import settings

from cloob_cli.checkpoint.folder import read_config
from cloob_cli.recipe import Recipe, filled_in
from cloob_cli.strict_model import parse


def finetuning(data: Path, init: Path, **changes: Any) -> Recipe:
    """The tiny recipe from the model in `init`; changes are named like `train__steps=3`."""
    keys: dict[str, Any] = settings(data)
    for section in ("tokenizer", "objective"):
        keys.pop(section)
    keys["model"] = {"init": str(init)}
    keys["train"]["steps"] = 10
    for name, value in changes.items():
        section, _, key = name.partition("__")
        keys.setdefault(section, {})[key] = value
    whole = filled_in(keys, read_config(init))
    return parse(Recipe, whole, "the test's recipe", AssertionError)  # type: ignore[arg-type]
