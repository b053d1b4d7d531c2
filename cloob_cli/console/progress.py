"""The progress of a piece of work: a bar on a terminal, a line now and then elsewhere (a cluster's log, nohup)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from cloob_cli.console.messages import info
from cloob_cli.console.result_output import file_size
from cloob_cli.console.streams import can_draw, drawing, err, is_quiet
from cloob_cli.text_format import duration

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """The bar, or the lines, of one piece of work.

    Args:
        description: a few words that stand first.
        total: the amount of work; None where nobody knows.
        unit: what is counted; "B" counts bytes.
        delay: seconds before a bar appears.
    """

    def __init__(self, description: str, total: float | None, unit: str, delay: float) -> None:
        from rich.progress import Progress as Bar

        self._unit = unit
        # Results are not redirected: what is printed meanwhile goes above the bar by the results' own functions.
        self._bar = Bar(
            *_columns(unit),
            console=err(),
            transient=True,
            redirect_stdout=False,
            disable=is_quiet() or not can_draw(),
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task(description, total=total, note="", before=0.0)
        self._appears = time.monotonic() + delay
        self._last_line = time.monotonic()
        self._show()

    @property
    def is_drawn(self) -> bool:
        """True where there is a bar, or will be one once the delay is over."""
        return not self._bar.disable

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more as done."""
        self._bar.update(self._task, advance=amount)
        self._show()

    def note(self, text: str) -> None:
        """Show `text` behind the numbers from now on."""
        self._bar.update(self._task, note=text)
        self._show()

    def restart(self, done: float, total: float | None) -> None:
        """Begin anew with `done` of `total` finished beforehand, which counts as done but not for the rate."""
        self._bar.reset(self._task, total=total, completed=int(done), note="", before=done)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def _show(self) -> None:
        now = time.monotonic()
        if self.is_drawn:
            if not self._bar.live.is_started and now >= self._appears:
                self._bar.start()
        elif now - self._last_line >= LINE_EVERY:
            self._last_line = now
            info(self._line(self._bar.tasks[0]))

    def _line(self, task: Task) -> str:
        """`classify: 1,200 of 100,000 images, 41 a second, 0:40:10 left`."""
        counted = f"{self._amount(task.completed)} of {self._amount(task.total)}" if task.total is not None else None
        unit = "" if self._unit == "B" else f" {self._unit}"
        rate = _rate(task)
        parts = [f"{task.description}: {counted or self._amount(task.completed)}{unit}"]
        parts.append(f"{file_size(int(rate))}/s" if self._unit == "B" else f"{rate:,.3g} a second")
        if task.remaining is not None and rate > 0:
            parts.append(f"{duration(task.remaining / rate)} left")
        return ", ".join(part for part in (*parts, task.fields["note"]) if part)

    def _amount(self, value: float) -> str:
        return str(file_size(int(value))) if self._unit == "B" else f"{value:,.0f}"


class _Silent(Progress):
    """The same where nothing is shown: without Rich, whose import takes a part of a short run."""

    is_drawn = False

    def __init__(self) -> None:
        pass

    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def restart(self, done: float, total: float | None) -> None:
        pass

    def stop(self) -> None:
        pass


@contextmanager
def track(description: str, total: float | None = None, unit: str = "it", delay: float = 0.0) -> Iterator[Progress]:
    """Show a bar with count, rate and time left on a terminal's stderr; elsewhere a line there every 30 seconds.

    The arguments are those of `Progress`.
    """
    progress = _Silent() if is_quiet() else Progress(description, total, unit, delay)
    try:
        with drawing() if progress.is_drawn else nullcontext():
            yield progress
    finally:
        progress.stop()


def _rate(task: Task) -> float:
    """The amount done a second over all the time: Rich's own rate makes too much of a batch that is done at once."""
    before: float = task.fields["before"]
    return (task.completed - before) / max(task.finished_time or task.elapsed or 0.0, 1e-9)


def _columns(unit: str) -> list[ProgressColumn]:
    from rich import progress
    from rich.text import Text

    class RateColumn(progress.ProgressColumn):
        def render(self, task: Task) -> Text:
            begun = (task.elapsed or 0.0) > 1
            return Text(f"{_rate(task):,.3g} {unit}/s" if begun and _rate(task) else "")

    counted: list[progress.ProgressColumn] = [progress.MofNCompleteColumn(), RateColumn()]
    if unit == "B":
        counted = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    return [
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=max(5, min(40, err().width - 60))),
        *counted,
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
    ]
