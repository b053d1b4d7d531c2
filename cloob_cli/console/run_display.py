"""The display of a run in progress: a bar with named values below it that are redrawn in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from cloob_cli.console.messages import info
from cloob_cli.console.streams import can_draw, drawing, err, is_quiet
from cloob_cli.text_format import duration

if TYPE_CHECKING:
    from rich.console import Group

# A terminal that is made narrower wraps what stands on it, and what was wrapped cannot be redrawn in place: the display
# is never wider than the narrowest terminal that is usual.
_WIDEST = 78
_BAR = (5, 30)  # least and largest width of the bar; below the least it is left out


class Status(Protocol):
    def update(self, done: int, total: int, seconds_left: float, values: str) -> None:
        """Show that `done` of `total` steps are done, the time that is left, and `values` beside them."""
        ...


class _LineStatus:
    """A line every so often, for where there is no terminal (a cluster's log)."""

    def __init__(self, title: str, every_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._every, self._clock = title, every_seconds, clock
        self._started, self._last = clock(), -every_seconds

    def update(self, done: int, total: int, seconds_left: float, values: str) -> None:
        elapsed = self._clock() - self._started
        if elapsed - self._last >= self._every:
            self._last = elapsed
            times = f"{duration(elapsed)} elapsed, {duration(seconds_left)} left"
            info(f"{self._title}: step {done:,} of {total:,}, {times}: {values}")


class _LiveStatus:
    """Two lines that are redrawn in place; their times go on between two updates."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._started = self._updated = clock()
        self._shown: tuple[int, int, float, str] | None = None

    def update(self, done: int, total: int, seconds_left: float, values: str) -> None:
        self._updated, self._shown = self._clock(), (done, total, seconds_left, values)

    def drawn(self, width: int) -> Group:
        """The lines for a terminal `width` columns wide, neither of which is wrapped."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = min(width - 1, _WIDEST)
        if self._shown is None:
            return Group()
        done, total, left, values = self._shown
        now = self._clock()
        left = max(0.0, left - (now - self._updated))
        counts = f"{done:,}/{total:,}"
        times = f"{duration(now - self._started)} elapsed, {duration(left)} left"
        room = width - len(self._title) - len(counts) - len(times) - 4
        if room < _BAR[0]:
            return Group(_cut(f"{self._title} {counts}  {times}", width), _cut(values, width))
        bar = ProgressBar(total=total, completed=done, width=min(room, _BAR[1]))
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(self._title, style="bold", no_wrap=True), bar, Text(f"{counts}  {times}", no_wrap=True))
        return Group(line, _cut(values, width))


def _cut(text: str, width: int) -> Any:
    from rich.text import Text

    line = Text(text, no_wrap=True, overflow="ellipsis")
    line.truncate(max(width, 1), overflow="ellipsis")
    return line


@contextmanager
def live_status(title: str, every_seconds: float = 10.0) -> Iterator[Status]:
    """Show a bar and a line of values that are redrawn in place; off a terminal a line every `every_seconds`."""
    if is_quiet() or not can_draw():
        yield _LineStatus(title, every_seconds)
        return
    from rich.live import Live

    status = _LiveStatus(title)

    def draw() -> Group:
        return status.drawn(err().width)

    with drawing(), Live(get_renderable=draw, console=err(), refresh_per_second=4, redirect_stdout=False):
        yield status
