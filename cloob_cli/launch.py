"""The process's place among those that a launcher (`accelerate launch`, `torchrun`) has started, by its environment."""

from __future__ import annotations

import os

# One of these is set by torchrun, accelerate launch (also for a single process) and the MPI launchers.
_LAUNCHERS = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def is_launched() -> bool:
    """True where a launcher started this process; it takes every exit code but 0 for a failed run."""
    return any(name in os.environ for name in _LAUNCHERS)


def count() -> int:
    """The number of processes that do the same work together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process among them, from 0; that one reports and writes."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_count() -> int:
    """The number of them on this machine."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(told) if count() > 1 and told.isdecimal() else count()
