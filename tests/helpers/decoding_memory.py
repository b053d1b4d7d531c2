"""Measure what decoding images takes: `decoding_memory.py exact|scaled FILE...` prints "used expected" for each."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from cloob_cli.data.decoding_memory import MemoryBudget
from cloob_cli.data.preprocess import Preprocess, read_crop
from cloob_cli.errors import ImageError

PREPROCESS = Preprocess(224)


class Unlimited(MemoryBudget):
    """A budget that remembers what was last asked for."""

    asked = 0

    def reserve(self, amount: int) -> AbstractContextManager[None]:
        self.asked = amount
        return super().reserve(amount)


UNLIMITED = Unlimited(10**15)


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(path: Path, exact: bool) -> tuple[int, int]:
    """Bytes by which resident memory grew at most, and the bytes that were expected."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    try:
        read_crop(path, PREPROCESS, UNLIMITED, exact=exact)
    except ImageError:  # the memory was taken all the same
        pass
    return status("VmHWM") - before, UNLIMITED.asked


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    exact = sys.argv[1] == "exact"
    for path in paths:  # libraries are loaded, and small buffers made, only once
        measure(path.with_name(f"small-{path.name}"), exact)
    for path in paths:
        print(*measure(path, exact))
