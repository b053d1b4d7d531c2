"""One process at a time: locks by name, that a crash gives back (the operating system holds them)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloob_cli.registry.paths import locks_folder

if TYPE_CHECKING:
    from filelock import FileLock


def lock_name(name: str) -> str:
    """The stem of a lock's file: any text becomes a short name that every file system takes."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


@contextmanager
def lock(name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock called `name`; `waiting` is called once where another process has it."""
    from filelock import Timeout

    held = _file_lock(lock_name(name))
    try:
        held.acquire(timeout=0)
    except Timeout:
        if waiting:
            waiting()
        held.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        held.release()


def is_held(stem: str) -> bool:
    """True where a process holds the lock whose `lock_name` is `stem`."""
    from filelock import Timeout

    if not (locks_folder() / f"{stem}.lock").exists():
        return False
    held = _file_lock(stem)
    try:
        held.acquire(timeout=0)
    except Timeout:
        return True
    held.release()
    return False


def remove_unheld() -> None:
    """Delete the files of locks that nobody holds.

    Each is deleted while it is held; whoever opened it before sees that it is gone and makes a new one (filelock does).
    """
    from filelock import Timeout

    for path in locks_folder().glob("*.lock"):
        held = _file_lock(path.stem)
        try:
            held.acquire(timeout=0)
        except Timeout:
            continue
        try:
            path.unlink(missing_ok=True)
        except PermissionError:  # Windows keeps an open file; another prune may find it closed
            pass
        finally:
            held.release()


def _file_lock(stem: str) -> FileLock:
    from filelock import FileLock

    locks_folder().mkdir(parents=True, exist_ok=True)
    return FileLock(locks_folder() / f"{stem}.lock")
