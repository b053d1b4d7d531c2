"""Bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from cloob_cli.console.streams import err, is_quiet


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
    if is_quiet() or not err().is_terminal or (beside_results and sys.stdout.isatty()):
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
    with bars.Progress(*columns, console=err(), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        yield _BarProgress(bar, bar.add_task(description, total=total, note=""))


def _rate_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{rate:,.1f} {unit}/s" if rate else "")

    return RateColumn()
