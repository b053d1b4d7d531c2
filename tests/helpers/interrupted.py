"""Interrupt or kill a command that keeps finished batches, at a moment that is the same every time."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import environment

from cloob_cli.inference.index import journal


@contextmanager
def ctrl_c_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Ctrl-C come in this process as soon as so many batches are kept."""
    append, left = journal.Journal.append, batches

    def counted(*arguments: object) -> None:
        nonlocal left
        append(*arguments)  # type: ignore[arg-type]
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "append", counted)
        yield


_KILLED = """
import os, sys
from cloob_cli.inference.index import journal
left, cut = int(sys.argv.pop(1)), int(sys.argv.pop(1))
append = journal.Journal.append
def counted(self, *arguments):
    global left
    append(self, *arguments)
    left -= 1
    if left == 0:
        if cut:
            os.truncate(self.path, os.path.getsize(self.path) - cut)
        os.kill(os.getpid(), 9)
journal.Journal.append = counted
from cloob_cli.main import run
run()
"""


def kill_embed_after(batches: int, arguments: Sequence[object], place: Path, *, cut: int = 0) -> None:
    """Run `cloob` in a process that is killed behind so many batches, the last of which loses its last `cut` bytes."""
    command = [sys.executable, "-c", _KILLED, str(batches), str(cut), *map(str, arguments)]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(place.rglob("*.arrows"))
