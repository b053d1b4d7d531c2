"""Remove installed models, and whatever interrupted or failed pulls left behind."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloob_cli import assets
from cloob_cli.checkpoint.folder import is_model_folder
from cloob_cli.errors import RegistryError, UnknownModelError
from cloob_cli.registry import entries, inventory, paths
from cloob_cli.registry.inventory import folder_size
from cloob_cli.registry.locks import is_held, lock, lock_name, remove_unheld
from cloob_cli.registry.paths import downloads_folder, evaluation_folder, quarantine_folder
from cloob_cli.strict_model import nearest

_UNUSED = 30 * 24 * 3600  # seconds since embeddings that `cloob eval` keeps were used, after which they may go


@dataclass(frozen=True)
class Removal:
    """One file or folder that can be deleted, and why."""

    path: Path
    what: str
    bytes: int
    model: str | None = None


def model_removal(name: str) -> Removal:
    """The removal of an installed model.

    Raises:
        UnknownModelError: no model of that name is installed.
    """
    if name in inventory.installed_models():
        folder = paths.installed_folder(name)
        return Removal(folder, f"model {name}", folder_size(folder), name)
    if is_model_folder(assets.bundled_folder(name)) and name in entries.entry_names():
        raise RegistryError(f"{name} is part of the package and cannot be removed")
    near = nearest(name, inventory.installed_models())
    raise UnknownModelError(
        f"no model {name!r} is installed", f"did you mean {near!r}?" if near else "`cloob zoo list` shows them"
    )


def leftovers() -> list[Removal]:
    """Unfinished and finished downloads, quarantined files, temporary folders, but for those now in use, and embeddings
    of evaluations that were not used for 30 days.
    """
    found = [*_downloads(), *_quarantined(), *_unfinished_installs(), *_embeddings()]
    return sorted(found, key=lambda removal: str(removal.path))


def carry_out(removals: list[Removal]) -> None:
    """Delete them. A model is renamed first, so that nobody ever opens half of one."""
    for removal in removals:
        if removal.model:
            with lock(f"model:{removal.model}"):
                aside = removal.path.with_name(f".{removal.model}.removed")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(removal.path, aside)
                shutil.rmtree(aside)
            _forget_default(removal.model)
        elif removal.path.is_dir():
            shutil.rmtree(removal.path)
        else:
            removal.path.unlink(missing_ok=True)
    remove_unheld()


def _downloads() -> Iterator[Removal]:
    for path in _entries(downloads_folder()):
        if not is_held(path.name.split(".")[0].lstrip(".")):  # a download in progress holds the lock of that name
            what = "finished download" if path.suffix == ".complete" else "unfinished download"
            yield Removal(path, what, path.stat().st_size)


def _quarantined() -> Iterator[Removal]:
    for path in _entries(quarantine_folder()):
        yield Removal(path, "quarantined file", path.stat().st_size)


def _unfinished_installs() -> Iterator[Removal]:
    for path in _entries(paths.home() / "models"):
        if path.name.startswith(".") and path.is_dir():
            name = path.name[1:].rsplit(".", 2)[0]  # ".NAME.RANDOM.partial"
            # What a crash left aside is the model itself where nothing stands in its place; the next pull sees to it.
            is_the_model = path.suffix == ".replaced" and not paths.installed_folder(name).exists()
            if not is_the_model and not is_held(lock_name(f"model:{name}")):
                yield Removal(path, "unfinished install", folder_size(path))


def _embeddings() -> Iterator[Removal]:
    for path in _entries(evaluation_folder()):
        if path.stat().st_mtime < time.time() - _UNUSED:
            yield Removal(path, "embeddings, unused for 30 days", path.stat().st_size)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _forget_default(name: str) -> None:
    if paths.default_file().is_file() and paths.default_file().read_text(encoding="utf-8").strip() == name:
        paths.default_file().unlink()
