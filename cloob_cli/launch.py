"""The process's place among those that a launcher (`accelerate launch`, `torchrun`) started, and its end with that."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

# One of these is set by torchrun, accelerate launch (also for a single process) and the MPI launchers.
_LAUNCHERS = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
# What they call the number of processes on this machine.
_LOCAL_COUNTS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
# What the command lines of launchers name: programs, or modules for Python to run.
_PROGRAMS = ("torchrun", "accelerate", "accelerate-launch", "torch.distributed.run", "torch.distributed.launch")
_MODULES = ("accelerate.commands.launch", "accelerate.commands.accelerate_cli", "deepspeed.launcher.launch")
_INTERVAL = 1.0  # seconds between two looks at the parent
_PATIENCE = 1.0  # seconds for the last words, which a terminal that nobody reads would hold for ever


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
    """The number of them on this machine; where the launcher does not say, all of them."""
    told = (os.environ.get(name, "") for name in _LOCAL_COUNTS)
    return next((int(text) for text in told if text.isdecimal()), count()) if count() > 1 else 1


def end_with_launcher() -> threading.Thread | None:
    """Watch the launcher that is this process's parent, and end the process where it is gone.

    A launcher that is stopped tells its processes; one that is killed cannot, and they would compute on, unseen. They
    end as if they were killed as well: every file is written under a temporary name first.

    Nothing is watched where the parent is no launcher: a shell may have set a launcher's variables, and may end long
    before what it started with `nohup`. Windows, where a process keeps its parent's number, has no such watch.

    Returns:
        The thread that watches, if any.
    """
    parent = os.getppid()
    if os.name == "nt" or not is_launched() or not _is_launcher(parent):
        return None
    thread = threading.Thread(target=_watch, args=(parent,), name="launcher's end", daemon=True)
    thread.start()
    return thread


def _is_launcher(process: int) -> bool:
    import psutil

    try:
        words = psutil.Process(process).cmdline()
    except psutil.Error:  # gone, or another user's
        return False
    program = os.path.basename(words[0]).lower() if words else ""
    if not program.startswith(("python", *_PROGRAMS)):  # a shell's command line may name anything
        return False
    named = ["." + word.removesuffix(".py").replace(os.sep, ".") for word in words]
    return any(word.endswith(f".{name}") for word in named for name in (*_PROGRAMS, *_MODULES))


def _watch(parent: int) -> None:
    # The launcher's own parent may change; this process's changes with the launcher's end alone.
    while os.getppid() == parent:
        time.sleep(_INTERVAL)
    words = threading.Thread(target=_say_why, daemon=True)
    words.start()
    words.join(_PATIENCE)
    os._exit(1)


def _say_why() -> None:
    for stream, words in ((sys.stderr, "error: the launcher of this process is gone, so it ends\n"), (sys.stdout, "")):
        with contextlib.suppress(OSError, ValueError):  # closed, or the launcher itself was to read it
            stream.write(words)
            stream.flush()
