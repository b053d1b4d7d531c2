"""`cloob` as a user runs it: a process of its own, with its exit code, stdout and stderr; or in this process."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
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


def peak_memory(*arguments: object, cwd: Path) -> tuple[int, int]:
    """Run cloob; its exit code and the largest resident memory it had, in bytes (POSIX only)."""
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=cwd, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, usage.ru_maxrss * unit
