"""How far a piece of work is: a bar on a terminal, a line now and then elsewhere (a cluster's log, nohup)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from cloob_cli.console.messages import talk
from cloob_cli.console.results import bytes_text
from cloob_cli.console.streams import can_draw, drawing, err, is_quiet

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


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


class _LineProgress:
    """`classify: 1,200 of 100,000 images, 41 a second, 0:40:10 left`, every so often."""

    def __init__(self, description: str, total: float | None, unit: str, clock: Callable[[], float]) -> None:
        self._description, self._total, self._unit, self._clock = description, total, unit, clock
        self._done = self._before = 0.0
        self._note = ""
        self._started = self._told = clock()

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        self._tell()

    def _tell(self) -> None:
        now = self._clock()
        if now - self._told >= LINE_EVERY:
            self._told = now
            talk(self._line(now))

    def total(self, amount: float | None) -> None:
        self._total = amount

    def note(self, text: str) -> None:
        self._note = text
        self._tell()

    def restart(self, done: float, total: float | None) -> None:
        self._done = self._before = done
        self._total, self._started = total, self._clock()

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        of = f" of {self._amount(self._total)}" if self._total is not None else ""
        parts = [f"{self._description}: {self._amount(self._done)}{of}"]
        if self._unit != "B":
            parts[0] += f" {self._unit}"
        parts.append(f"{bytes_text(int(rate))}/s" if self._unit == "B" else f"{rate:,.3g} a second")
        if self._total is not None and rate > 0:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join(part for part in (*parts, self._note) if part)

    def _amount(self, value: float) -> str:
        return str(bytes_text(int(value))) if self._unit == "B" else f"{value:,.0f}"


class _BarProgress:
    """A bar that appears when the work has taken `delay` seconds."""

    def __init__(self, bar: Any, description: str, total: float | None, delay: float) -> None:
        self._bar, self._appears = bar, time.monotonic() + delay
        self._task = bar.add_task(description, total=total, note="")
        self._start_when_due()

    def advance(self, amount: float = 1) -> None:
        self._bar.update(self._task, advance=amount)
        self._start_when_due()

    def total(self, amount: float | None) -> None:
        self._bar.update(self._task, total=amount)

    def note(self, text: str) -> None:
        self._bar.update(self._task, note=text)

    def restart(self, done: float, total: float | None) -> None:
        # What was there before counts as done, but not for the rate.
        self._bar.reset(self._task, completed=int(done), total=total)

    def _start_when_due(self) -> None:
        if not self._bar.live.is_started and time.monotonic() >= self._appears:
            self._bar.start()


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "it", delay: float = 0.0) -> Iterator[Progress]:
    """A bar with count, rate and time left on a terminal's stderr; elsewhere a line there every 30 seconds.

    Args:
        unit: what is counted; "B" counts bytes.
        delay: seconds before a bar appears, for work that is mostly done at once.
    """
    if is_quiet():
        yield _NoProgress()
        return
    if not can_draw():
        yield _LineProgress(description, total, unit, time.monotonic)
        return
    from rich import progress as bars

    counted: list[Any]
    if unit == "B":
        counted = [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    else:
        counted = [bars.MofNCompleteColumn(), _rate_column(unit)]
    columns = [
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=max(5, min(40, err().width - 60))),
        *counted,
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}", markup=False),
    ]
    # Results are not redirected: what is printed meanwhile goes above the bar by the results' own functions.
    bar = bars.Progress(*columns, console=err(), transient=True, redirect_stdout=False)
    try:
        with drawing():
            yield _BarProgress(bar, description, total, delay)
    finally:
        bar.stop()


def duration(seconds: float) -> str:
    """A length of time for people: "0:07", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            # Over all the time: inputs come in bursts, a batch at once, of which Rich's own rate makes too much.
            seconds = task.finished_time or task.elapsed or 0.0
            rate = task.completed / seconds if seconds > 1 else 0.0
            return Text(f"{rate:,.3g} {unit}/s" if rate else "")

    return RateColumn()
