"""Keep the garbage collector away from what lives as long as the process: imported modules."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Made with nanobind, which tells on stderr, in some sixty lines, what is left of a library's objects at the end.
_COUNTING = ("triton",)


@contextmanager
def paused_for_imports() -> Iterator[None]:
    """Collect no garbage in the body; what the body imports is left out of all later collections.

    torch alone makes some hundred thousand objects, none of them garbage. The collector would go through them several
    times while they are made, and twice when the process ends: a third of the time of a command that does little else.
    """
    if not gc.isenabled():
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if len(sys.modules) > before:  # else only garbage could be kept
            gc.freeze()


def no_more() -> None:
    """Collect no garbage any more, as the process ends and gives all of its memory back.

    Where a library is loaded that counts its objects, everything is collected instead.
    """
    if any(name in sys.modules for name in _COUNTING):
        gc.unfreeze()
    else:
        gc.freeze()
