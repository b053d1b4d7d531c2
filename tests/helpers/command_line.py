"""`cloob` as a user runs it: a process of its own, with its exit code, stdout and stderr; or in this process."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

COMMAND = [sys.executable, "-m", "cloob_cli"]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without settings that would change what cloob does; one thread for torch."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOOB_")}
    return (
        kept
        | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "default"), "NO_COLOR": "1"}
        | changes
    )


def cloob(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def cloob_here(*arguments: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The same without a new process, for the many short cases: torch is imported once."""
    from cloob_cli import main

    out, err = io.StringIO(), io.StringIO()
    words = ["cloob", *map(str, arguments)]
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, environment(**env), clear=True),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


# Waits for a command and prints its exit code and peak. It has to be a small process that starts it: what a process is
# copied from counts for its peak, and a process that runs tests may hold gigabytes.
_MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=file)
"""


def peak_memory(*arguments: object, cwd: Path) -> tuple[int, int]:
    """Run cloob; its exit code and the largest resident memory it had, in bytes (POSIX only)."""
    with tempfile.NamedTemporaryFile("r") as file:
        command = [sys.executable, "-c", _MEASURE, file.name, *COMMAND, *map(str, arguments)]
        subprocess.run(command, cwd=cwd, env=environment(), check=True)
        code, peak = map(int, file.read().split())
    return code, peak * (1 if sys.platform == "darwin" else 1024)
