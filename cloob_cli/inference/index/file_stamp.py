"""The file that a row was made of: its size, time of change and contents, by which a later run knows it again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from cloob_cli.atomic_files import sha256_of

Result = TypeVar("Result")

# Of two changes within this time a file system may keep one time only (FAT counts in two seconds).
_SETTLED = 2_000_000_000


class Stamp(NamedTuple):
    """Size in bytes, time of change in nanoseconds, and hex sha256 of a file.

    `mtime_ns` is None where the file changed so shortly before it was read that a later change could show the same
    time; `sha256` is empty where it changed while it was read.
    """

    size: int
    mtime_ns: int | None
    sha256: str


def stamped(path: Path, read: Callable[[], Result]) -> tuple[Stamp, Result]:
    """Stamp the file at `path` and call `read`, which reads it.

    Raises:
        OSError: the file cannot be read.
    """
    now = time.time_ns()
    before = os.stat(path)
    sha256 = sha256_of(path)
    result = read()
    after = os.stat(path)
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        return Stamp(before.st_size, None, ""), result
    return Stamp(before.st_size, before.st_mtime_ns if before.st_mtime_ns < now - _SETTLED else None, sha256), result
