"""What there is: every card and every installed model, without opening a single one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cloob_cli.registry import store
from cloob_cli.registry.cards import Card, Score, all_cards

INSTALL_RECORD = "installed.json"
_BYTES_A_PARAMETER = 4  # converted models are stored as float32

State = Literal["bundled", "installed", "not installed"]


@dataclass(frozen=True)
class Entry:
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

    def as_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        return self.__dict__ | {
            "scores": [score.model_dump() for score in self.scores],
            "path": str(self.path) if self.path else None,
        }


def inventory() -> list[Entry]:
    """Every card, then the installed models that have none, each sorted by name."""
    cards = all_cards()
    known = {card.name for card in cards}
    own = [name for name in store.installed_models() if name not in known]
    default = store.default_model()
    return [_carded(card, default) for card in cards] + [_uncarded(name, default) for name in own]


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def install_record(folder: Path) -> dict[str, Any]:
    """What was noted when a model was installed: source, hashes, time; empty where nothing was."""
    return read_json_object(folder / INSTALL_RECORD)


def _carded(card: Card, default: str) -> Entry:
    state, path = _where(card.name)
    expected = card.parameters * _BYTES_A_PARAMETER if card.parameters else card.source.download_bytes
    return Entry(
        name=card.name,
        state=state,
        is_default=card.name == default,
        size_bytes=folder_size(path) if path else expected,
        parameters=card.parameters,
        image_size=card.image_size,
        data=card.data,
        scores=card.scores,
        license=card.license,
        path=path,
        summary=card.summary,
    )


def _uncarded(name: str, default: str) -> Entry:
    folder = store.installed_folder(name)
    vision = read_json_object(folder / store.CONFIG_FILE).get("vision")
    image_size = vision.get("image_size") if isinstance(vision, dict) else None
    return Entry(
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
    if store.is_model_folder(store.bundled_folder(name)):  # in the order of `store.find`
        return "bundled", store.bundled_folder(name)
    if store.is_model_folder(store.installed_folder(name)):
        return "installed", store.installed_folder(name)
    return "not installed", None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
