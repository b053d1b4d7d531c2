"""A training run of a second: 64 captioned images that a tiny model can learn, and a recipe for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from cloob_cli.recipe import Recipe
from cloob_cli.strict_model import parse
from cloob_cli.training import loop
from cloob_cli.training.events import CheckpointSaved

COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
PLACES = {
    "left": (0, 0, 7, 15), "right": (8, 0, 15, 15), "top": (0, 0, 15, 7), "bottom": (0, 8, 15, 15),
    "middle": (4, 4, 11, 11), "corner": (0, 0, 7, 7), "all": (0, 0, 15, 15), "stripe": (6, 0, 9, 15),
}  # fmt: skip


def write_pairs(folder: Path) -> Path:
    """64 images of 16 x 16 pixels, each with its caption beside it."""
    folder.mkdir(parents=True)
    for number, (color, place) in enumerate((c, p) for c in COLORS for p in PLACES):
        image = Image.new("RGB", (16, 16), "gray")
        ImageDraw.Draw(image).rectangle(PLACES[place], fill=color)
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"{color} {place}\n", encoding="utf-8")
    return folder


def write_class_folders(folder: Path) -> Path:
    """Four images of every color, in a subfolder named like it."""
    for color in COLORS:
        (folder / color).mkdir(parents=True)
        for place in list(PLACES)[:4]:
            image = Image.new("RGB", (16, 16), "gray")
            ImageDraw.Draw(image).rectangle(PLACES[place], fill=color)
            image.save(folder / color / f"{place}.png")
    return folder


def settings(data: Path | str, **changes: Any) -> dict[str, Any]:
    """The recipe as nested keys; a change is named like `train__steps=3`."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "embed_dim": 16,
            "vision": {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2},
            "text": {"context_length": 8, "width": 16, "layers": 2, "heads": 2},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 560},
        "data": {"train": str(data), "workers": 0},
        "objective": {"hopfield_warmup": 0.4, "scale_hopfield": 14.3},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 8},
        "train": {"steps": 30, "batch_size": 16, "precision": "fp32", "log_every": 5, "checkpoint_every": 10},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            recipe.setdefault(section, {})[key] = value
        else:
            recipe[section] = value
    return recipe


def tiny_recipe(data: Path | str, **changes: Any) -> Recipe:
    return parse(Recipe, settings(data, **changes), "the test's recipe", AssertionError)  # type: ignore[arg-type]


def write_recipe(path: Path, data: Path | str, **changes: Any) -> Path:
    """The same as a TOML file."""
    lines: list[str] = []

    def section(name: str, values: dict[str, Any]) -> None:
        if name:
            lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict))
        for key, value in values.items():
            if isinstance(value, dict):
                section(f"{name}.{key}" if name else key, value)

    section("", settings(data, **changes))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_weights(made: Recipe, folder: Path, *, last: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    """Weights of a whole run of 10 steps, or of one that is cut off behind step `last`."""
    events = loop.train_recipe(made, folder, device="cpu", resume=resume)
    for event in events:
        if isinstance(event, CheckpointSaved) and event.step == last:
            break
    events.close()  # type: ignore[attr-defined]
    return load_file(folder / "checkpoints" / f"step-{last or 10:08}" / "model.safetensors")


def equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
