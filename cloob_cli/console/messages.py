"""Lines on stderr: notices, hints, warnings and errors."""

from __future__ import annotations

import os
import sys

from cloob_cli.console.streams import err, is_quiet
from cloob_cli.errors import CloobError
from cloob_cli.text_format import printable


def info(text: str) -> None:
    """Print a notice on stderr; nothing when quiet."""
    if not is_quiet():
        err().print(printable(text), markup=False, soft_wrap=True)


def hint(text: str) -> None:
    """Suggest a next step on stderr; nothing when quiet."""
    if not is_quiet():
        err().print(f"hint: {printable(text)}", style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on stderr, also when quiet: the work goes on, but not as asked."""
    err().print(f"warning: {printable(text)}", style="yellow", markup=False, soft_wrap=True)


def show_error(error: CloobError) -> None:
    """Print an error on stderr: one line, and its hint on another."""
    err().print(f"error: {printable(error.message)}", style="bold red", markup=False, soft_wrap=True)
    if error.hint:
        err().print(f"hint: {printable(error.hint)}", markup=False, soft_wrap=True)


def can_ask() -> bool:
    """True where a person is there to answer a question: stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def debugging() -> bool:
    """True where the user asked for tracebacks of expected errors (`CLOOB_DEBUG=1`)."""
    return os.environ.get("CLOOB_DEBUG", "") not in ("", "0")
