"""stdout and stderr: text that their encoding cannot hold, closed pipes, and Rich's consoles on them."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from cloob_cli.errors import CloobError

if TYPE_CHECKING:
    from rich.console import Console

_quiet = False
_drawing = 0  # displays on stderr that are redrawn in place
_UNENCODABLE = "cloob.escape"  # the error handler of both streams


def configure(quiet: bool = False) -> None:
    """Set the mode of all later calls: `quiet` keeps notices, hints and progress off stderr (errors still show)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """True where notices, hints and progress are kept off stderr."""
    return _quiet


def prepare_streams() -> None:
    """Make stdout and stderr accept every text, so that no file name or label ends a command or loses a row.

    Characters that the encoding lacks (a Windows pipe has cp1252) are written as `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`.
    """
    codecs.register_error(_UNENCODABLE, _escape)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_UNENCODABLE)


def finish_streams() -> None:
    """Write the rest of stdout's buffer; a reader that has gone is no error.

    Raises:
        CloobError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    except OSError as problem:
        discard_stdout()
        raise unwritable(problem) from None


def flush() -> None:
    """Flush stdout.

    Raises:
        BrokenPipeError: the reader of stdout has gone.
        CloobError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise unwritable(problem) from None


@contextmanager
def ignore_closed_stdout() -> Iterator[None]:
    """Go on without printing where the reader of stdout has gone (`| head`); elsewhere that ends a command."""
    try:
        yield
    except BrokenPipeError:
        discard_stdout()


def unwritable(problem: OSError) -> CloobError:
    """The error for a result that cannot be written to stdout, as to a file on a full disk."""
    return CloobError(f"the result cannot be written: {problem.strerror or problem}")


def discard_stdout() -> None:
    """Redirect stdout to the null device, so that the interpreter does not fail on it when it ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@cache
def out() -> Console:
    """Rich's console on stdout."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


@cache
def err() -> Console:
    """Rich's console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def can_draw() -> bool:
    """True where stderr is a terminal on which something can be redrawn in place."""
    return sys.stderr.isatty() and err().is_interactive


@contextmanager
def drawing() -> Iterator[None]:
    """Mark that a display on stderr is redrawn in place: results on the same terminal are printed above it."""
    global _drawing
    _drawing += 1
    try:
        yield
    finally:
        _drawing -= 1


def is_drawing() -> bool:
    """True while something is being redrawn in place."""
    return _drawing > 0


def result_console() -> Console:
    """The console for results: stdout's, or stderr's while that redraws a display on the same terminal."""
    return err() if is_drawing() and _one_terminal() else out()


def _one_terminal() -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError):
        return True


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters that an encoding lacks: a file name's own bytes as they were, others as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if error.encoding.lower().startswith(("utf-16", "utf-32")):  # single bytes would shift all that follows
        return codecs.backslashreplace_errors(error)
    # One at a time: a handler answers either in bytes or in text.
    first = error.object[error.start]
    if "\udc80" <= first <= "\udcff":
        return bytes([ord(first) - 0xDC00]), error.start + 1
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(one)
