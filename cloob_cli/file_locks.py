"""Locks of unfinished files: held while their process lives, so that those of a killed one are known as abandoned."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if os.name == "posix":
    import fcntl

_ABANDONED_AFTER = 24 * 3600.0  # seconds without a change, where a file system knows no locks


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Create the file `path`, which must not exist, and hold its lock."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        _lock(handle, wait=True)
        if not path.exists():  # another process came before the lock and took the file for abandoned
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Create the folder `path` and hold its lock, where folders can be locked."""
    path.mkdir(mode=0o700)
    if os.name != "posix":
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield True where no living process works on this unfinished file or folder; in the body none can begin to."""
    if os.name != "posix":
        # Windows itself refuses to delete a file that a process holds open.
        yield path.is_file() or _is_old(path)
        return
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:  # gone, or somebody else's
        yield False
        return
    try:
        free = _lock(handle)
        yield _is_old(path) if free is None else free
    finally:
        os.close(handle)


def _lock(handle: int, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed; False where another process holds it, None where locks are unknown."""
    if os.name != "posix":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as problem:
        return False if problem.errno in {errno.EWOULDBLOCK, errno.EACCES} else None
    return True


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
    except OSError:
        return False
