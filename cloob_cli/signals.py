"""Ctrl-C, SIGTERM and SIGHUP: while nothing is done yet they end the process at once, later they unwind it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_EXIT_CODE = 130
# SIGTERM is a cluster's "time is up", SIGHUP a terminal that closes (Windows has none).
_TO_END = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process with one line, unless whoever started it wants Ctrl-C ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def unwind() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt: commands save what they can.

    What whoever started the process wants ignored, as `nohup` does SIGHUP, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _TO_END:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _unwind)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """For imports of compiled modules, which may swallow an exception or die of it, before there is work to lose."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_TO_END)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _leave)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(_EXIT_CODE)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
