"""The list of models: every zoo entry and every installed model, without opening a single one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cloob_cli import assets
from cloob_cli.checkpoint.folder import CONFIG_FILE, is_model_folder
from cloob_cli.registry import paths
from cloob_cli.registry.entries import Score, ZooEntry, all_entries

INSTALL_RECORD = "installed.json"
_BYTES_A_PARAMETER = 4  # converted models are stored as float32

State = Literal["bundled", "installed", "not installed"]


@dataclass(frozen=True)
class InventoryItem:
    """One model of the zoo. `size_bytes` is that of its folder; of a model that is not installed, the expected one."""

    name: str
    state: State
    is_default: bool
    size_bytes: int | None
    parameters: int | None
    image_size: int | None
    data: str | None
    scores: list[Score] = field(default_factory=list)
    license: str | None = None
    path: Path | None = None
    summary: str | None = None
    objective: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The item as plain values."""
        return self.__dict__ | {
            "scores": [score.model_dump() for score in self.scores],
            "path": str(self.path) if self.path else None,
        }


def all_models() -> list[InventoryItem]:
    """Every entry, then the installed models that have none, each sorted by name."""
    entries = all_entries()
    known = {entry.name for entry in entries}
    own = [name for name in installed_models() if name not in known]
    default = default_model()
    return [_from_entry(entry, default) for entry in entries] + [_from_folder(name, default) for name in own]


def installed_models() -> list[str]:
    """The names of the installed models, sorted; the bundled ones are not among them."""
    folder = paths.models_folder()
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and is_model_folder(entry))


def default_model() -> str:
    """The model that is used when none is named: `$CLOOB_MODEL`, the zoo's default, or else the bundled one."""
    chosen = os.environ.get("CLOOB_MODEL")
    if chosen:
        return chosen
    try:
        return paths.default_file().read_text(encoding="utf-8").strip() or assets.BUNDLED_MODEL
    except (OSError, UnicodeDecodeError):
        return assets.BUNDLED_MODEL


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def install_record(folder: Path) -> dict[str, Any]:
    """The record of a model's installation: source, hashes, time; empty where nothing was."""
    return read_json_object(folder / INSTALL_RECORD)


def _from_entry(entry: ZooEntry, default: str) -> InventoryItem:
    state, path = _where(entry.name)
    expected = entry.parameters * _BYTES_A_PARAMETER if entry.parameters else entry.source.download_bytes
    return InventoryItem(
        name=entry.name,
        state=state,
        is_default=entry.name == default,
        size_bytes=folder_size(path) if path else expected,
        parameters=entry.parameters,
        image_size=entry.image_size,
        data=entry.data,
        scores=entry.scores,
        license=entry.license,
        path=path,
        summary=entry.summary,
        objective=entry.objective,
    )


def _from_folder(name: str, default: str) -> InventoryItem:
    folder = paths.installed_folder(name)
    vision = read_json_object(folder / CONFIG_FILE).get("vision")
    image_size = vision.get("image_size") if isinstance(vision, dict) else None
    return InventoryItem(
        name=name,
        state="installed",
        is_default=name == default,
        size_bytes=folder_size(folder),
        parameters=None,
        image_size=image_size if isinstance(image_size, int) else None,
        data=None,
        path=folder,
    )


def _where(name: str) -> tuple[State, Path | None]:
    if is_model_folder(assets.bundled_folder(name)):  # in the order of `resolve.find_model`
        return "bundled", assets.bundled_folder(name)
    if is_model_folder(paths.installed_folder(name)):
        return "installed", paths.installed_folder(name)
    return "not installed", None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
