"""One process at a time: locks by name, that a crash gives back (the operating system holds them)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloob_cli.registry.store import home


@contextmanager
def lock(name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock called `name`; `waiting` is called once where another process has it."""
    from filelock import FileLock, Timeout

    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
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
