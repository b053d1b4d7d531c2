"""Lines on stderr: notices, hints, warnings and errors."""

from __future__ import annotations

import os
import sys

from cloob_cli.console.streams import err, is_quiet, printable
from cloob_cli.errors import CloobError


def talk(text: str) -> None:
    """A notice on stderr."""
    if not is_quiet():
        err().print(printable(text), markup=False, soft_wrap=True)


def hint(text: str) -> None:
    """What a user may want to do next, on stderr."""
    if not is_quiet():
        err().print(f"hint: {printable(text)}", style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Something that went on but not as asked, on stderr; shown also when quiet."""
    err().print(f"warning: {printable(text)}", style="yellow", markup=False, soft_wrap=True)


def show_error(error: CloobError) -> None:
    """One line and a hint."""
    err().print(f"error: {printable(error.message)}", style="bold red", markup=False, soft_wrap=True)
    if error.hint:
        err().print(f"hint: {printable(error.hint)}", markup=False, soft_wrap=True)


def can_ask() -> bool:
    """Whether a person is there to answer a question."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def debugging() -> bool:
    """Whether the user wants tracebacks of expected errors (`CLOOB_DEBUG=1`)."""
    return os.environ.get("CLOOB_DEBUG", "") not in ("", "0")
