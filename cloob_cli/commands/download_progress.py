"""Show downloads: notices as lines, bytes as a bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cloob_cli import console

if TYPE_CHECKING:
    from cloob_cli.registry.events import Event, Report


@contextmanager
def reporting() -> Iterator[Report]:
    """Show notices as lines, and a download as a bar of bytes that appears with the first one."""
    from cloob_cli.registry.events import Notice, Received, Started

    with ExitStack() as stack:
        bars: list[console.Progress] = []

        def report(event: Event) -> None:
            if isinstance(event, Notice):
                console.info(event.text)
                return
            if not bars:
                bars.append(stack.enter_context(console.track("downloading", unit="B")))
            if isinstance(event, Started):
                bars[0].restart(event.done, event.total)
                bars[0].note(event.name)
            elif isinstance(event, Received):
                bars[0].advance(event.bytes)

        yield report
