"""A budget of memory that several threads share: what does not fit waits until others have given back theirs."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloob_cli.errors import UsageError

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)
_DEFAULT_FRACTION = 0.25


class OverBudgetError(Exception):
    """More was asked for than the whole budget."""


class MemoryBudget:
    """`total` bytes. Whoever comes first is served first, so that what is large need not wait for ever."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold `amount` bytes of the budget inside the block; wait for them first.

        Raises:
            OverBudgetError: the whole budget is smaller.
        """
        if amount > self.total:
            raise OverBudgetError
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= amount)
                self._free -= amount
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


def parse_bytes(text: str) -> int:
    """A number of bytes: "1GB", "512 MB", "1.5GiB", "2G", "1000000".

    Raises:
        UsageError: it is no such number, or 0.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count < 1:
        raise UsageError(f"'{text}' is no amount of memory", "like 1GB, 512MB or 1.5GiB")
    return count


def default_budget() -> int:
    """A quarter of the memory that this process may use: the machine's, or less where a control group says so."""
    import psutil

    return int(_DEFAULT_FRACTION * min([psutil.virtual_memory().total, *_control_group_limits()]))


def _control_group_limits() -> list[int]:
    """Limits of this process's control groups (containers, cluster jobs), version 2 and 1."""
    root = Path("/sys/fs/cgroup")
    candidates = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2; every ancestor limits too
                group = root / path.lstrip("/")
                candidates += [folder / "memory.max" for folder in (group, *group.parents) if root in folder.parents]
            elif "memory" in controllers.split(","):
                candidates.append(root / "memory" / path.lstrip("/") / "memory.limit_in_bytes")
    except (OSError, ValueError):  # not Linux
        pass
    limits = []
    for candidate in candidates:
        try:
            limits.append(int(candidate.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return [limit for limit in limits if limit > 0]
