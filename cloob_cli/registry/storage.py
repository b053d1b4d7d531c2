"""Free space on the disk, and the quarantine of invalid files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cloob_cli.errors import DiskSpaceError
from cloob_cli.files import sha256_of
from cloob_cli.registry.paths import quarantine_folder

FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

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
            f"not enough room in {folder}: {needed / 1e6:,.0f} MB needed and {_KEPT_FREE / 1e6:,.0f} MB to stay free, "
            f"{available / 1e6:,.0f} MB free",
            "`cloob zoo prune` frees what is no longer needed; CLOOB_HOME puts models elsewhere",
        )


def quarantine(path: Path, name: str) -> Path:
    """Move an invalid file into the quarantine, for a person to look at, and return where it is now."""
    folder = quarantine_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{sha256_of(path)[:8]}-{name}"
    os.replace(path, target)
    return target
