"""cloob on a terminal: a pseudo-terminal of a given width, and what stands on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from command_line import COMMAND, environment

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process whose stdin, stdout and stderr are a terminal; `shown` is what came out, as it came.

    `code` is run instead of the module, for a test that has to change something first.
    """

    def __init__(self, *arguments: object, cwd: Path, columns: int = 80, code: str | None = None, **env: str) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._keeper, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        settings = environment(TERM="xterm", **env)
        settings.pop("COLUMNS", None)
        program = COMMAND if code is None else [sys.executable, "-c", code]
        command = [*program, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=settings, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=hear_ctrl_c
        )
        os.close(terminal)
        self.shown = ""

    def read_until(self, found: Callable[[str], bool], seconds: float = 120.0) -> str:
        """Everything shown up to now, once `found` is content with it or the process has ended."""
        import select

        deadline = time.monotonic() + seconds
        while not found(self.shown):
            ready, _, _ = select.select([self._keeper], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.process.kill()
                raise TimeoutError(self.shown)
            try:
                piece = os.read(self._keeper, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                piece = b""
            if not piece:
                break
            self.shown += piece.decode("utf-8", "replace")
        return self.shown

    def finish(self) -> int:
        """Read to the end; the exit code."""
        self.read_until(lambda _: False)
        code = self.process.wait(60)
        os.close(self._keeper)
        return code

    def lines(self) -> list[str]:
        """The lines written, without colors and cursor movements; a line that was redrawn counts as its last state."""
        return [_CONTROL.sub("", line.split("\x1b[2K")[-1]).rstrip() for line in self.shown.split("\r\n")]


def hear_ctrl_c() -> None:
    """For a child: Ctrl-C is heard, whatever the tests were started with."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SUPPORTED = sys.platform != "win32"
