"""The folder of a run: its paths, its lock, its recipe and its result.

RUN/recipe.json                      the recipe with all defaults, paths made absolute
RUN/tokenizer.json                   the tokenizer that the run trains with
RUN/metrics.jsonl                    a row every `log_every` steps and every validation
RUN/loss.png                         the loss curve (extra `report`)
RUN/skipped.jsonl                    pairs that could not be read
RUN/checkpoints/step-00001000/       see checkpoints.py
RUN/start/                           the model that the run started from (with model.init), see initial_model.py
RUN/features/image, text/            features of a frozen tower, see data/feature_cache.py
RUN/end/                             the last weights, where the finished model lies between start and end
RUN/interpolation.json               the scores on the way from start to end (finetune.interpolate)
RUN/model/                           the finished model
RUN/result.json                      step, metrics, skipped pairs and seconds; written when everything is done
RUN/run.lock                         held by the process that trains here
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cloob_cli.atomic_files import existing_folder, is_unfinished, remove_abandoned, replacing
from cloob_cli.checkpoint.folder import is_model_folder
from cloob_cli.errors import UsageError
from cloob_cli.recipe import Recipe
from cloob_cli.strict_model import parse
from cloob_cli.training.checkpoints import Progress, load_progress, newest_valid
from cloob_cli.training.events import Finished
from cloob_cli.training.metrics_file import last_loss, read_rows
from cloob_cli.training.precision import pick_precision

LOCK_FILE = "run.lock"

_RESULT_KEYS = ("step", "metrics", "skipped", "seconds")

# Keys that may change between a run and its continuation: they do not change what the weights become. Where the data
# lie does not either; whether they are the same data, the checkpoint knows (data_split.py).
_FREE_KEYS = {
    "description", "finetune.interpolate", "data.train", "data.validation", "data.workers", "data.in_memory",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.save_precision",
    "validation.every", "validation.retrieval_pairs", "validation.zero_shot", "validation.datasets",
}  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path
    checkpoints: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoints", self.path / "checkpoints")

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.jsonl"

    @property
    def loss_curve(self) -> Path:
        return self.path / "loss.png"

    @property
    def start(self) -> Path:
        return self.path / "start"

    @property
    def features(self) -> Path:
        return self.path / "features"

    @property
    def end(self) -> Path:
        return self.path / "end"

    @property
    def interpolation(self) -> Path:
        return self.path / "interpolation.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def check_free(self, resume: bool) -> None:
        """Make sure that a run may be written here, as far as that can be told without its recipe.

        Raises:
            UsageError: a run exists and `resume` is false, or the folder holds something else or cannot be made.
        """
        if self.recipe.exists():
            if not resume:
                raise UsageError(f"{self.path} already holds a run", "go on with --resume, or choose another --out")
            return
        check_writable(self.path)
        entries = self.path.iterdir() if self.path.exists() else []
        # A lock, and what a process left that was killed before the recipe had its name.
        if any(entry.name != LOCK_FILE and not is_unfinished(entry.name) for entry in entries):
            raise UsageError(f"{self.path} exists and is not a run's folder", "choose another with --out")

    def check(self, recipe: Recipe, resume: bool) -> None:
        """Make sure that this run may be written here, before anything is.

        Raises:
            UsageError: as `check_free`, or a run was made here by a recipe with other settings.
        """
        self.check_free(resume)
        if not self.recipe.exists():
            return
        try:
            stored = json.loads(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(f"{self.recipe} cannot be read, so the run cannot be resumed") from None
        before = parse(Recipe, stored, str(self.recipe), UsageError)  # keys that are new since then get their defaults
        differing = differences(before.model_dump(mode="json"), recipe.model_dump(mode="json"))
        if differing:
            shown = "; ".join(f"{key}: {old!r} then, {new!r} now" for key, old, new in differing[:5])
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UsageError(f"{self.path} was made by another recipe: {shown}{more}", "choose another --out")

    def create(self, recipe: Recipe) -> None:
        """Write the resolved recipe, by which the folder is known as a run's, then what belongs beside it."""
        with replacing(self.recipe) as temporary:
            temporary.write_text(json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
        self.checkpoints.mkdir(exist_ok=True)

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for folder in (self.path, self.checkpoints):
            remove_abandoned(folder)
        if self.skipped.exists():  # what is appended to a line that was cut short is lost with it
            os.truncate(self.skipped, self.skipped.read_bytes().rfind(b"\n") + 1)

    def finish(self, finished: Finished) -> None:
        """Write down that the run is done: a resumption then has nothing to do."""
        stored = {name: getattr(finished, name) for name in _RESULT_KEYS}
        with replacing(self.result) as temporary:
            temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")

    def finished(self) -> Finished | None:
        """The run's end, if it is done and its model still there."""
        try:
            stored = json.loads(self.result.read_text(encoding="utf-8"))
            values = {name: stored[name] for name in _RESULT_KEYS}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Finished(model_folder=self.model, already=True, **values) if is_model_folder(self.model) else None


class RunLock:
    """The lock of a run's folder: one process at a time. The operating system takes it back from one that ends."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    @property
    def held(self) -> bool:
        return self._lock is not None

    def take(self, folder: Path) -> str | None:
        """Take the lock of `folder`, which exists. Taken already: do nothing.

        Returns:
            A notice where the file system has no locks, else None.

        Raises:
            UsageError: another process holds it.
        """
        if self._lock is not None:
            return None
        lock = FileLock(folder / LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is training in {folder}", "wait for it or stop it, or choose another --out"
            ) from None
        except (NotImplementedError, OSError) as problem:
            if isinstance(problem, PermissionError | FileNotFoundError | NotADirectoryError):
                raise
            return f"{folder} cannot be locked ({problem}): nothing keeps a second run out of it"
        self._lock = lock
        return None

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@dataclass(frozen=True)
class Start:
    """The state from which a run starts, as its folder tells it.

    Attributes:
        checkpoint: the one to go on from, in the main process's file system; None: from the beginning.
        progress: of that checkpoint. Its precision is the run's in either case.
        last_loss: the one that was last written down, or not a number.
        skipped: names of the pairs that were skipped so far.
        notices: for the user.
        finished: the run's end, where there is nothing left to do.
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
        checkpoint, damaged = newest_valid(folder.checkpoints)
        notices += damaged
    if checkpoint:
        progress = load_progress(checkpoint)
    else:
        progress = Progress(0, 0.0, pick_precision(recipe.train.precision, device))
    skipped = [row["name"] for row in read_rows(folder.skipped)] if folder.skipped.exists() else []
    return Start(checkpoint, progress, last_loss(folder.metrics, progress.step), skipped, notices)


def check_unused(folder: RunFolder, resume: bool) -> None:
    """Make sure that a run may start or go on here, before it is known which: nothing of it is kept or held.

    Raises:
        UsageError: as `RunFolder.check_free`, or another process holds the lock.
    """
    if (folder.path / LOCK_FILE).exists():
        lock = RunLock()
        lock.take(folder.path)
        lock.release()
    folder.check_free(resume)


def claim(folder: RunFolder, recipe: Recipe, resume: bool, lock: RunLock) -> str | None:
    """Make the folder and take its lock; a notice where the file system has no locks.

    Raises:
        UsageError: another process has made a run of it meanwhile.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    found = lock.held  # by `find_start`: then the run is the one that was found there
    notice = lock.take(folder.path)
    folder.check(recipe, resume and found)
    folder.create(recipe)
    return notice


def check_writable(path: Path) -> None:
    """Make sure that the folder `path` can be made or written to. Raises UsageError."""
    existing = existing_folder(path)
    if not existing.is_dir():
        raise UsageError(f"{path} cannot be made: {existing} is not a folder", "choose another with --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be made: {existing} may not be written to", "choose another with --out")


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, old, new) for every setting of two recipes that differs and matters for the weights."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        name, old, new = prefix + key, before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{name}.")
        elif old != new and name not in _FREE_KEYS:
            found.append((name, old, new))
    return found
