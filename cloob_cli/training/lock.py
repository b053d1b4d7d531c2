"""One run in a folder at a time: a lock that the operating system takes back from a process that ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from cloob_cli.errors import UsageError

LOCK_FILE = "run.lock"


class RunLock:
    """The lock of a run's folder, once it is taken; `release` gives it back."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    @property
    def held(self) -> bool:
        return self._lock is not None

    def take(self, folder: Path) -> str | None:
        """Take the lock of `folder`, which exists. Taken already: do nothing.

        Returns:
            What to tell where the file system has no locks, else None.

        Raises:
            UsageError: another process holds it.
        """
        if self._lock is not None:
            return None
        lock = FileLock(folder / LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is training in {folder}", "wait for it or stop it, or choose another --out"
            ) from None
        except (NotImplementedError, OSError) as problem:
            if isinstance(problem, PermissionError | FileNotFoundError | NotADirectoryError):
                raise
            return f"{folder} cannot be locked ({problem}): nothing keeps a second run out of it"
        self._lock = lock
        return None

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
