"""The form of a folder with a model: the program that wrote it, and the files that are needed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from cloob_cli.errors import ConversionError
from cloob_cli.text_format import os_reason

ForeignForm = Literal["open_clip", "transformers"]

CONFIG_FILE = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Up to transformers 4 the first, since then the second.
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_SUPPORTING_FILES = ("README.md", *PREPROCESSOR_FILES, *TOKENIZER_FILES)

# Every file that a folder of one of these forms is opened with.
FOREIGN_FILES = (CONFIG_FILE, OPEN_CLIP_CONFIG, *OPEN_CLIP_WEIGHTS, *TRANSFORMERS_WEIGHTS, *_SUPPORTING_FILES)


def foreign_form(folder: Path) -> ForeignForm | None:
    """The program whose form a folder has; None for ours, and for whatever is none of these.

    A folder with two forms, as repositories of LAION have it, counts as open_clip's: its tensors have our names.
    """
    described = _object(folder / CONFIG_FILE)
    if "format_version" in described:
        return None
    is_transformers = "model_type" in described and not is_rinna(described)
    if (folder / OPEN_CLIP_CONFIG).is_file() and (
        not is_transformers or any((folder / name).is_file() for name in OPEN_CLIP_WEIGHTS)
    ):
        return "open_clip"
    return "transformers" if is_transformers else None


def is_rinna(described: dict[str, Any]) -> bool:
    """True where a `config.json` is that of rinna's Japanese CLOOB: a ViT and a RoBERTa, not a pair of transformers."""
    vision, kind = described.get("vision_config"), described.get("model_type")
    has_vit = isinstance(vision, dict) and vision.get("model_type") == "vit"
    return kind == "cloob" or (has_vit and kind != "vision-text-dual-encoder")


def needed_files(names: Collection[str]) -> list[str]:
    """The files that are needed of a repository in open_clip's form; empty where it has none of that form."""
    weights = next((name for name in OPEN_CLIP_WEIGHTS if name in names), None)
    if weights is None or OPEN_CLIP_CONFIG not in names:
        return []
    return [name for name in (OPEN_CLIP_CONFIG, weights, *_SUPPORTING_FILES) if name in names]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConversionError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConversionError(f"{path} cannot be read ({os_reason(problem)})") from None
    except (ValueError, RecursionError) as problem:
        raise ConversionError(f"{path} cannot be read as JSON ({problem})") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds no JSON object")
    return value


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ConversionError:
        return {}
