"""`cloob embed` in several processes: process 0 finds and writes, and each embeds every n-th batch of what is new.

Each process keeps its rows in a part of the output's journal, as one process does; the first one merges the parts.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import launch, process_exchange
from cloob_cli.commands.index_run import IndexOptions, describe, embed_part
from cloob_cli.commands.inference_run import open_model
from cloob_cli.errors import CloobError, Failure, Interrupted, UsageError

if TYPE_CHECKING:
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.inference.index.files import IndexFiles


@dataclass(frozen=True)
class _Task:
    """The images to embed, how, and a file that shows that the output's folder is the same everywhere."""

    new: list[Path | Failure]
    journal: Path
    mark: Path
    made_with: dict[str, str]


@dataclass(frozen=True)
class _Part:
    path: Path | None
    rows: int
    failures: list[Failure]


class Leader:
    """Process 0's side of the work."""

    def __init__(self) -> None:
        self.has_told = False
        self._new: list[Path | Failure] = []

    def hand_out(
        self, files: IndexFiles, new: list[Path | Failure], made_with: dict[str, str], batch_size: int
    ) -> list[Path | Failure]:
        """Tell the others what to do; returns this process's own images.

        Raises:
            UsageError: a process does not see the output's folder.
        """
        files.journal.mkdir(parents=True, exist_ok=True)
        mark = files.journal / f"{secrets.token_hex(8)}.mark"
        mark.touch()
        self._new, self.has_told = new, True
        process_exchange.told(_Task(new, files.journal, mark, made_with))
        seen = process_exchange.gathered(True)
        mark.unlink()
        if not all(seen):
            raise UsageError(
                f"process {seen.index(False)} does not see {files.journal.parent}",
                "several machines need a folder for the output that they share",
            )
        return _share(new, batch_size)

    def collect(self, part: Path | None, work: Work) -> list[Path]:
        """The parts of all processes, once they are done; their rows and failures are added to `work`."""
        from cloob_cli.path_text import path_text

        parts = process_exchange.gathered(_Part(part, work.rows, work.failures))
        for other in parts[1:]:
            work.add(other.rows, other.failures)
        places = {(path_text(item) if isinstance(item, Path) else item.name): at for at, item in enumerate(self._new)}
        work.failures.sort(key=lambda failure: places.get(failure.name, len(places)))
        return [part.path for part in parts if part.path]


@contextmanager
def leading() -> Iterator[Leader | None]:
    """Process 0 with the others, in the body; None where there are none."""
    if launch.count() == 1:
        yield None
        return
    from cloob_cli.inference import processes

    with processes.joined():
        leader = Leader()
        try:
            yield leader
        except Interrupted as problem:
            raise Interrupted(
                f"{problem.message}, by a signal or because another process ended", problem.hint
            ) from None
        finally:
            if not leader.has_told:
                process_exchange.told(None)


def follow(options: IndexOptions) -> None:
    """Do the part of a process that is not the first one.

    Raises:
        CloobError: its model is another one, or it cannot compute.
    """
    from cloob_cli.inference import processes
    from cloob_cli.inference.index.reading import difference

    for number in (signal.SIGINT, signal.SIGTERM):  # a killed part is as good as one that is stopped
        signal.signal(number, signal.SIG_DFL)
    with processes.joined():
        task: _Task | None = process_exchange.told()
        if task is None:
            return
        if not all(process_exchange.gathered(task.mark.exists())):
            return
        try:
            model, _ = open_model(options.model, options.device, options.precision)
            if key := difference(task.made_with, describe(options, model)):
                raise UsageError(f"{key} is another one than in process 0", "every process needs the same model")
            failures: list[Failure] = []

            def read(failure: Failure | None) -> None:
                failures.extend([failure] if failure else [])

            own = _share(task.new, options.batch_size)
            part = embed_part(model, own, task.journal, options, task.made_with, read)
        except CloobError as problem:
            raise type(problem)(f"process {launch.rank()}: {problem.message}", problem.hint) from None
        process_exchange.gathered(_Part(part, len(own) - len(failures), failures))


def own_options(options: IndexOptions) -> IndexOptions:
    """The options of this process: a GPU of its own, and its part of the machine's cores and memory."""
    if launch.count() == 1:
        return options
    import torch

    from cloob_cli.data.decoding_memory import default_budget
    from cloob_cli.parallel import core_count

    device, number = options.device, os.environ.get("LOCAL_RANK", "0")
    if device is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}:
        device = "cpu"
    if device in (None, "auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{number}"
    return dataclasses.replace(
        options,
        device=device,
        workers=max(1, core_count() // launch.local_count()) if options.workers is None else options.workers,
        memory_budget=options.memory_budget or default_budget() // launch.local_count(),
    )


def _share(new: Sequence[Path | Failure], batch_size: int) -> list[Path | Failure]:
    """Every n-th batch, beginning with the one of this process's number."""
    starts = range(launch.rank() * batch_size, len(new), launch.count() * batch_size)
    return [item for start in starts for item in new[start : start + batch_size]]
