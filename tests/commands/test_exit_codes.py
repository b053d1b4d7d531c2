"""A command's failure becomes an exit code, a line and a hint; a fault of the program stays a traceback."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command_line import cloob_here

from cloob_cli import diagnosis
from cloob_cli.errors import CloobError, DataError, UsageError


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (OSError(errno.EIO, "Input/output error", "/disk/a.npy"), 1, "error: Input/output error: /disk/a.npy\n"),
        (PermissionError(errno.EACCES, "Permission denied"), 1, "error: Permission denied\n"),
        (PermissionError(errno.EACCES, "Permission denied", 7), 1, "error: Permission denied: 7\n"),  # an open file
        (MemoryError(), 1, "error: out of memory\n"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), 1, "error: out of memory\n"),
        (CloobError("it failed", "do that"), 1, "error: it failed\n"),
        (UsageError("not so"), 2, "error: not so\n"),
        (DataError("no data"), 2, "error: no data\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_expected_failure_is_a_code_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, code: int, said: str
) -> None:
    def fails() -> None:
        raise problem

    monkeypatch.setattr(diagnosis, "diagnose", fails)
    done = cloob_here("doctor", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) <= 2  # the second is the hint
    with pytest.raises(type(problem)):
        cloob_here("doctor", cwd=tmp_path, CLOOB_DEBUG="1")


def test_a_place_that_cannot_be_written_has_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, number = tmp_path / "home", errno.EROFS
    for path, hint in ((home, "CLOOB_HOME"), (home / "locks" / "a", "CLOOB_HOME"), (tmp_path / "b", "CLOOB_DEBUG=1")):
        monkeypatch.setattr(
            diagnosis, "diagnose", Mock(side_effect=OSError(number, "Read-only file system", str(path)))
        )
        done = cloob_here("doctor", cwd=tmp_path, CLOOB_HOME=str(home))
        assert done.stderr.splitlines()[0] == f"error: Read-only file system: {path}"
        assert done.stderr.splitlines()[1].startswith(f"hint: {hint}")
    monkeypatch.setattr(diagnosis, "diagnose", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert "hint: free some room" in cloob_here("doctor", cwd=tmp_path).stderr


def test_a_fault_of_the_program_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "diagnose", lambda: {}["versions"])
    with pytest.raises(KeyError):
        cloob_here("doctor", cwd=tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_inside_a_string_of_code_is_130_too() -> None:
    """CPython remembers it and would end the process with SIGINT at its exit, whatever the exit code."""
    program = (
        "from cloob_cli import main, signals\n"
        "def app(standalone_mode):\n"
        "    try:\n"
        "        exec('raise KeyboardInterrupt')\n"  # as where a dataclass is made
        "    except KeyboardInterrupt:\n"
        "        return signals.EXIT_CODE\n"
        "main.app = app\n"
        "main.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "error: interrupted" in done.stderr
