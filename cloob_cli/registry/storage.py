"""Free space on the disk, the quarantine of invalid files, and errors about files in plain names."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloob_cli.atomic_files import existing_folder, sha256_of
from cloob_cli.errors import CloobError, DiskSpaceError
from cloob_cli.registry.paths import quarantine_folder

FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

_KEPT_FREE = 64 << 20  # bytes that a download leaves free for everybody else


def free_space(folder: Path) -> int:
    """Free bytes where `folder` is (or will be)."""
    return shutil.disk_usage(existing_folder(folder)).free


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


@contextmanager
def in_plain_names(folder: Path, shown: str, other: Path | None = None) -> Iterator[None]:
    """Errors of the body name `shown` where they named `folder` as it is called until it is whole, or `other`."""
    # "NAME" is ".NAME.SOMETHING.partial" until then, and what replaces that with the same care "..NAME.SOMETHING..."
    temporary = re.escape(str(folder.parent) + os.sep) + r"\.+" + re.escape(folder.name) + r"(\.[\w-]+\.partial)+"

    def plain(text: str) -> str:
        text = re.sub(temporary, lambda found: shown, text)
        return text.replace(str(other), shown) if other else text

    try:
        yield
    except CloobError as problem:
        raise type(problem)(plain(problem.message), problem.hint and plain(problem.hint)) from None
    except OSError as problem:
        if problem.errno in FULL_DISK:
            raise DiskSpaceError(f"the disk is full: {folder.parent}", "free some room and try again") from None
        if isinstance(problem.filename, str):
            problem.filename = plain(problem.filename)
        raise
