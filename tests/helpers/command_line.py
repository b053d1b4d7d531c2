"""`cloob` as a user runs it: a process of its own, with its exit code, stdout and stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "cloob_cli"]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without settings that would change what cloob does; one thread for torch."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOOB_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "NO_COLOR": "1"} | changes


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


def peak_memory(*arguments: object, cwd: Path) -> tuple[int, int]:
    """Run cloob; its exit code and the largest resident memory it had, in bytes (POSIX only)."""
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=cwd, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, usage.ru_maxrss * unit
