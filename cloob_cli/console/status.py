"""The display of a run in progress: named values that are redrawn in place."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from cloob_cli.console.streams import err, is_quiet
from cloob_cli.console.talk import talk


class Status(Protocol):
    def update(self, **fields: object) -> None: ...


class _LineStatus:
    """Where there is no terminal (a cluster's log): a line every so often instead of a display."""

    def __init__(self, title: str, every_seconds: float) -> None:
        self._title, self._every, self._last = title, every_seconds, 0.0

    def update(self, **fields: object) -> None:
        now = time.monotonic()
        if not is_quiet() and now - self._last >= self._every:
            self._last = now
            talk(f"{self._title}: " + "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items()))


class _LiveStatus:
    def __init__(self, title: str, live: Any) -> None:
        self._title, self._live = title, live

    def update(self, **fields: object) -> None:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        names, values = [], []
        for name, value in fields.items():
            names.append(Text(name.replace("_", " "), style="dim"))
            values.append(Text(str(value)))
        grid.add_row(Text(self._title, style="bold"), *names)
        grid.add_row(Text(""), *values)
        self._live.update(grid)


@contextmanager
def live_status(title: str, every_seconds: float = 10.0) -> Iterator[Status]:
    """A small table of named values that is redrawn in place; on a pipe a line every `every_seconds`."""
    if is_quiet() or not err().is_terminal:
        yield _LineStatus(title, every_seconds)
        return
    from rich.live import Live

    with Live(console=err(), refresh_per_second=4, transient=False, redirect_stdout=sys.stdout.isatty()) as live:
        yield _LiveStatus(title, live)
