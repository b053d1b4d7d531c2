"""Where a run starts: what its folder holds, as the main process finds it and tells the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cloob_cli.recipe import Recipe
from cloob_cli.training import state
from cloob_cli.training.events import Finished
from cloob_cli.training.lock import RunLock
from cloob_cli.training.precision import pick_precision
from cloob_cli.training.state import Progress, RunFolder
from cloob_cli.training.telemetry import last_loss, read_rows


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: the one to go on from, in the main process's file system; None: from the beginning.
        progress: of that checkpoint. Its precision is the run's in either case.
        last_loss: the one that was last written down, or not a number.
        skipped: names of the pairs that were skipped so far.
        notices: what is worth telling.
        finished: how the run ended, where there is nothing left to do.
    """

    checkpoint: Path | None
    progress: Progress
    last_loss: float
    skipped: list[str]
    notices: list[str]
    finished: Finished | None = None


def find_start(folder: RunFolder, recipe: Recipe, device: torch.device, resume: bool, lock: RunLock) -> Start:
    """Look into the run's folder; take its lock where there is a run already.

    Raises:
        UsageError: `folder` holds something else, or a run that is not to be resumed, that has another recipe, or
            that another process works on.
        TrainingError: every checkpoint is damaged.
    """
    notices: list[str] = []
    if folder.recipe.exists():
        notices += filter(None, [lock.take(folder.path)])
    folder.check(recipe, resume)
    finished = folder.finished() if resume else None
    if finished:
        return Start(None, Progress(finished.step, finished.seconds, "fp32"), 0.0, [], [], finished)
    checkpoint = None
    if resume:
        folder.clean()
        checkpoint, damaged = state.newest_good(folder.checkpoints)
        notices += damaged
    if checkpoint:
        progress = state.load_progress(checkpoint)
    else:
        progress = Progress(0, 0.0, pick_precision(recipe.train.precision, device))
    skipped = [row["name"] for row in read_rows(folder.skipped)] if folder.skipped.exists() else []
    return Start(checkpoint, progress, last_loss(folder.metrics, progress.step), skipped, notices)


def claim(folder: RunFolder, recipe: Recipe, resume: bool, lock: RunLock) -> str | None:
    """Make the folder and take its lock; what to tell where there are no locks.

    Raises:
        UsageError: another process has made a run of it meanwhile.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    found = lock.held  # by `find_start`: then the run is the one that was found there
    notice = lock.take(folder.path)
    folder.check(recipe, resume and found)
    folder.create(recipe)
    return notice
