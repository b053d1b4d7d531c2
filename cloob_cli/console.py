"""The one module that draws: results go to stdout, talk goes to stderr, bars only to a terminal.

A result is a table for people when stdout is a terminal and tab-separated columns in a pipe, or JSON when asked.
Rich is imported on first use, so that commands without output stay quick.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from cloob_cli.errors import CloobError

if TYPE_CHECKING:
    from rich.console import Console

_quiet = False


def configure(quiet: bool = False) -> None:
    """Set what every later call does: `quiet` keeps notices, hints and progress off stderr (errors still show)."""
    global _quiet
    _quiet = quiet


@cache
def _out() -> Console:
    from rich.console import Console

    return Console(highlight=False)


@cache
def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


# --- talk ---------------------------------------------------------------------------------------------------------


def talk(text: str) -> None:
    """A notice on stderr."""
    if not _quiet:
        _err().print(text, markup=False, soft_wrap=True)


def hint(text: str) -> None:
    """What a user may want to do next, on stderr."""
    if not _quiet:
        _err().print(f"hint: {text}", style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Something that went on but not as asked, on stderr; shown also when quiet."""
    _err().print(f"warning: {_printable(text)}", style="yellow", markup=False, soft_wrap=True)


def show_error(error: CloobError) -> None:
    """One line and a hint."""
    _err().print(f"error: {_printable(error.message)}", style="bold red", markup=False, soft_wrap=True)
    if error.hint:
        _err().print(f"hint: {_printable(error.hint)}", markup=False, soft_wrap=True)


# --- results ------------------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows of text: a table on a terminal, tab-separated columns with a header line elsewhere."""
    if not sys.stdout.isatty():
        line("\t".join(columns))
        for row in rows:
            line("\t".join(_plain(cell) for cell in row))
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_plain(cell)) for cell in row))
    _out().print(drawn)


def line(text: str) -> None:
    """One plain line of the result. Bytes of a file name that are no UTF-8 come out as they went in."""
    stream = sys.stdout
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:
        stream.flush()
        stream.buffer.write((text + "\n").encode(stream.encoding or "utf-8", "surrogateescape"))


def json_line(value: Any) -> None:
    """One object of a JSON Lines result."""
    line(json.dumps(value, ensure_ascii=True, allow_nan=False))


def json_document(value: Any) -> None:
    """The whole result as one JSON document."""
    line(json.dumps(value, ensure_ascii=True, allow_nan=False, indent=2))


def bytes_text(count: int | None) -> str | None:
    """A number of bytes for people: "408 MB"."""
    if count is None:
        return None
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def can_ask() -> bool:
    """Whether a person is there to answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _plain(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return _printable(text)


def _printable(text: str) -> str:
    """A file name may hold line breaks, tabs or escape sequences; in a line of text they are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


# --- progress -----------------------------------------------------------------------------------------------------


class Progress(Protocol):
    def advance(self, amount: float = 1) -> None: ...
    def total(self, amount: float | None) -> None: ...
    def note(self, text: str) -> None: ...
    def restart(self, done: float, total: float | None) -> None: ...


class _NoProgress:
    def advance(self, amount: float = 1) -> None: ...
    def total(self, amount: float | None) -> None: ...
    def note(self, text: str) -> None: ...
    def restart(self, done: float, total: float | None) -> None: ...


class _BarProgress:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: float = 1) -> None:
        self._bar.update(self._task, advance=amount)

    def total(self, amount: float | None) -> None:
        self._bar.update(self._task, total=amount)

    def note(self, text: str) -> None:
        self._bar.update(self._task, note=text)

    def restart(self, done: float, total: float | None) -> None:
        # What was there before counts as done, but not for the rate.
        self._bar.reset(self._task, completed=int(done), total=total)


@contextmanager
def progress(
    description: str, total: float | None = None, unit: str = "it", beside_results: bool = False
) -> Iterator[Progress]:
    """A bar with count, rate and time left on a terminal's stderr; nothing elsewhere. `unit` "B" counts bytes.

    `beside_results`: results go to stdout meanwhile, so where that is a terminal too they are progress enough.
    """
    if _quiet or not _err().is_terminal or (beside_results and sys.stdout.isatty()):
        yield _NoProgress()
        return
    from rich import progress as bars

    counted: list[Any]
    if unit == "B":
        counted = [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    else:
        counted = [bars.MofNCompleteColumn(), _rate_column(unit)]
    # Rich sends what is printed meanwhile to the bar's own stream, stderr: right on a terminal, where it then stands
    # above the bar, and never when stdout is a file or a pipe.
    columns = [
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        *counted,
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}", markup=False),
    ]
    with bars.Progress(*columns, console=_err(), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        yield _BarProgress(bar, bar.add_task(description, total=total, note=""))


def _rate_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{rate:,.1f} {unit}/s" if rate else "")

    return RateColumn()


class Status(Protocol):
    def update(self, **fields: object) -> None: ...


class _LineStatus:
    """Where there is no terminal (a cluster's log): a line every so often instead of a display."""

    def __init__(self, title: str, every_seconds: float) -> None:
        self._title, self._every, self._last = title, every_seconds, 0.0

    def update(self, **fields: object) -> None:
        now = time.monotonic()
        if not _quiet and now - self._last >= self._every:
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
    if _quiet or not _err().is_terminal:
        yield _LineStatus(title, every_seconds)
        return
    from rich.live import Live

    with Live(console=_err(), refresh_per_second=4, transient=False, redirect_stdout=sys.stdout.isatty()) as live:
        yield _LiveStatus(title, live)


def debugging() -> bool:
    """Whether the user wants tracebacks of expected errors (`CLOOB_DEBUG=1`)."""
    return os.environ.get("CLOOB_DEBUG", "") not in ("", "0")
