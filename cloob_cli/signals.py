"""Handle Ctrl-C, SIGTERM and SIGHUP: before work begins they end the process at once, later they unwind it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from cloob_cli import garbage

EXIT_CODE = 130  # of a process that Ctrl-C ended
# SIGTERM is a cluster's "time is up", SIGHUP a terminal that closes (Windows has none).
_TO_END = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def leave_at_once() -> None:
    """Make Ctrl-C end the process with one line, unless whoever started it has Ctrl-C ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def unwind() -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt, so that commands save what they can.

    Signals that the starter of the process ignores, as `nohup` does SIGHUP, stay ignored.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _TO_END:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _unwind)


def forget_interrupts() -> None:
    """Make the interpreter exit with the code that it is told to, whatever was interrupted before.

    CPython notes a KeyboardInterrupt that leaves a string of code in `exec` or `eval` (dataclasses and named tuples are
    made by them), and a process with such a note ends itself with SIGINT however it exits. Each run of such a string
    begins by erasing the note (`run_eval_code_obj` in CPython's Python/pythonrun.c).
    """
    exec("")


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process at once on a signal in the body: imports of compiled modules may swallow an exception.

    The imports are also `garbage.paused_for_imports`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with garbage.paused_for_imports(), _handling(_leave):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Delay a first Ctrl-C until the end of the body; a second one is raised at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    with _handling(remember):
        yield
    if caught:
        raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_TO_END)}
    try:
        for number, present in before.items():
            if present is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, present in before.items():
            signal.signal(number, present)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(EXIT_CODE)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
