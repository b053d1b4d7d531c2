"""Ctrl-C, SIGTERM and SIGHUP while training: the first asks the loop to save and leave, the second leaves at once.

Python runs its signal handlers between two of its own instructions, which may be long in coming (a vocabulary is
learned, a first step compiled). So a thread listens too: it answers at once, and leaves at the second signal.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cloob_cli.errors import Interrupted

_GRACE = 10.0  # seconds in which the program may tidy up where there is nothing to save
_AT_ONCE = "stopping; once more to leave without tidying up"
_AFTER_STEP = "stopping: this step is finished and saved first; once more to leave at once"


class StopRequest:
    """`requested` becomes true with the first signal.

    As long as `nothing_to_save` says why, as the message of the error, the signal itself raises Interrupted, wherever
    the program is. Code that swallows any error may lose it: `check` raises it anew.
    """

    def __init__(self) -> None:
        self.requested = False
        self.nothing_to_save: str | None = "stopped before the first step"
        self.hint: str | None = None

    def check(self) -> None:
        """Raise Interrupted where there is nothing to save."""
        if self.requested and self.nothing_to_save:
            raise Interrupted(self.nothing_to_save, self.hint)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(Interrupted.exit_code)
        self.requested = True
        self.check()

    def answer(self) -> str:
        """The answer to whoever sent the first signal."""
        return _AT_ONCE if self.nothing_to_save else _AFTER_STEP


@contextmanager
def stop_on_signals(acknowledge: Callable[[str], None] | None = None) -> Iterator[StopRequest]:
    """Catch the signals inside the block. Outside the main thread, where Python delivers none, do nothing.

    A SIGHUP that is ignored, as `nohup` arranges it, stays ignored.

    Args:
        acknowledge: told at the first signal what happens now, from another thread.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ours, listened = socket.socketpair()
    ours.setblocking(False)
    before = {number: signal.signal(number, stop.on_signal) for number in _signals()}
    other = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(listened, stop, set(before), acknowledge), daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(other)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        thread.join(timeout=1)  # at the interpreter's end such a thread is frozen, and would be waited for for ever
        listened.close()


def _listen(
    stream: socket.socket, stop: StopRequest, signals: set[int], acknowledge: Callable[[str], None] | None
) -> None:
    """Read the numbers of signals, which Python writes as they arrive, until the other end is closed."""
    seen = 0
    while received := _received(stream):
        for number in received:
            seen += number in signals
            if seen > 1:
                os._exit(Interrupted.exit_code)
            if number in signals:
                if acknowledge:
                    acknowledge(stop.answer())
                stream.settimeout(_GRACE if stop.nothing_to_save else None)


def _received(stream: socket.socket) -> bytes:
    try:
        return stream.recv(64)
    except TimeoutError:  # the program is deep in something that hears no signal, and nothing is lost
        os._exit(Interrupted.exit_code)


def _signals() -> list[signal.Signals]:
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found
