"""A full disk, by whatever name the libraries that write call it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloob_cli.errors import DiskSpaceError

# No room on the disk; no room for this user; the largest file that this process may write.
_NUMBERS = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())


@contextmanager
def naming_a_full_disk(folder: Path, hint: Callable[[], str]) -> Iterator[None]:
    """Inside, writes that fail for want of room are one error that names `folder`.

    Raises:
        DiskSpaceError: for them, with what `hint` says then.
    """
    try:
        yield
    except Exception as problem:
        if not _for_want_of_room(problem):
            raise
        raise DiskSpaceError(f"{folder} cannot be written: no room is left on its disk", hint()) from problem


def _for_want_of_room(problem: Exception) -> bool:
    if isinstance(problem, OSError):
        return problem.errno in _NUMBERS
    text = str(problem)
    if type(problem).__name__ == "SafetensorError":  # its text ends with the system's number
        return any(f"os error {number})" in text or f"code: {number}," in text for number in _NUMBERS)
    # torch.save keeps no number: its archive came out shorter than what was written to it.
    return isinstance(problem, RuntimeError) and "inline_container" in text
