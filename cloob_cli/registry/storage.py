"""Room on the disk: is there enough, where downloads are kept, and where bad files are set aside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cloob_cli.errors import DiskSpaceError
from cloob_cli.files import sha256_of
from cloob_cli.registry.store import home

_KEPT_FREE = 64 << 20  # bytes that a download leaves free for everybody else


def free_space(folder: Path) -> int:
    """Free bytes where `folder` is (or will be)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, free: Callable[[Path], int] = free_space) -> None:
    """Raise DiskSpaceError where `needed` bytes do not fit."""
    available = free(folder)
    if needed + _KEPT_FREE > available:
        raise DiskSpaceError(
            f"not enough room in {folder}: {needed / 1e6:,.0f} MB needed, {available / 1e6:,.0f} MB free",
            "`cloob zoo prune` frees what is no longer needed; CLOOB_HOME puts models elsewhere",
        )


def downloads_folder() -> Path:
    """Where unfinished downloads, and finished ones that are not installed yet, are kept."""
    return home() / "downloads"


def rejected_folder() -> Path:
    """Where files that proved to be others than expected are set aside."""
    return home() / "rejected"


def set_aside(path: Path, name: str) -> Path:
    """Move a bad file out of the way, for a person to look at."""
    folder = rejected_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{sha256_of(path)[:8]}-{name}"
    os.replace(path, target)
    return target
