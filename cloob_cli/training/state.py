"""A run's folder: its recipe, its checkpoints, and how to go on from the newest good one.

    RUN/recipe.json                      the recipe with all defaults, paths made absolute
    RUN/tokenizer.json                   the tokenizer that the run trains with
    RUN/metrics.jsonl                    a row every `log_every` steps and every validation
    RUN/loss.png                         a picture of the loss (extra `report`)
    RUN/skipped.jsonl                    pairs that could not be read
    RUN/checkpoints/step-00001000/       model.safetensors, average.safetensors (with train.ema), optimizer.pt,
                                         state.json (step, fingerprint of the data, hashes of
                                         the other files; written last)
    RUN/model/                           the finished model
    RUN/result.json                      step, metrics, skipped pairs and seconds; written when everything is done
    RUN/run.lock                         held by the process that trains here

Which sample comes when, the learning rate and the random numbers of a step are functions of the seed and the step
number, so a checkpoint needs no more than the tensors and the step.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cloob_cli import __version__
from cloob_cli.errors import TrainingError, UsageError
from cloob_cli.files import remove_abandoned, replacing, replacing_folder, sha256_of
from cloob_cli.recipe import Recipe
from cloob_cli.registry.store import is_model_folder
from cloob_cli.schema import parse
from cloob_cli.training.ema import EMA
from cloob_cli.training.events import Finished
from cloob_cli.training.lock import LOCK_FILE
from cloob_cli.training.precision import Precision
from cloob_cli.training.processes import send_tensors

_RESULT_KEYS = ("step", "metrics", "skipped", "seconds")

# Keys that may change between a run and its continuation: they do not change what the weights become. Where the data
# lie does not either; whether they are the same data, the checkpoint knows (data_record.py).
_FREE_KEYS = {
    "description", "data.train", "data.validation", "data.workers", "data.in_memory", "train.log_every",
    "train.checkpoint_every", "train.keep_checkpoints", "train.save_precision", "validation.every",
    "validation.retrieval_pairs", "validation.zero_shot",
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
    def model(self) -> Path:
        return self.path / "model"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def check(self, recipe: Recipe, resume: bool) -> None:
        """Make sure that this run may be written here, before anything is.

        Raises:
            UsageError: a run exists and `resume` is false, or it was made by a recipe with other settings, or the
                folder cannot be made.
        """
        if not self.recipe.exists():
            check_writable(self.path)
            if self.path.exists() and any(entry.name != LOCK_FILE for entry in self.path.iterdir()):
                raise UsageError(f"{self.path} exists and is not a run's folder", "choose another with --out")
            return
        if not resume:
            raise UsageError(f"{self.path} already holds a run", "go on with --resume, or choose another --out")
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
        """Make the folder and write the resolved recipe."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with replacing(self.recipe) as temporary:
            temporary.write_text(json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for folder in (self.path, self.checkpoints):
            remove_abandoned(folder)

    def finish(self, finished: Finished) -> None:
        """Write down that the run is done: a resumption then has nothing to do."""
        stored = {name: getattr(finished, name) for name in _RESULT_KEYS}
        with replacing(self.result) as temporary:
            temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")

    def finished(self) -> Finished | None:
        """How the run ended, if it is done and its model still there."""
        try:
            stored = json.loads(self.result.read_text(encoding="utf-8"))
            values = {name: stored[name] for name in _RESULT_KEYS}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Finished(model_folder=self.model, already=True, **values) if is_model_folder(self.model) else None


def check_writable(path: Path) -> None:
    """Make sure that the folder `path` can be made or written to. Raises UsageError."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
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


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        seconds: of training so far.
        precision: kept so that a continuation uses the same.
        data: what the run was trained on (data_record.py); empty where the checkpoint does not say.
    """

    step: int
    seconds: float
    precision: Precision
    data: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any | None,
    average: EMA | None,
    keep: int,
) -> Path:
    """Write the checkpoint of a finished step under `folder`, then remove all but the newest `keep`."""
    from safetensors.torch import save_file

    path = folder / f"step-{progress.step:08d}"
    with replacing_folder(path) as temporary:
        save_file(_plain(model.state_dict()), temporary / "model.safetensors")
        if average is not None:
            save_file(_plain(average.tensors), temporary / "average.safetensors")
        torch.save(
            {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None},
            temporary / "optimizer.pt",
        )
        state = {
            "step": progress.step,
            "seconds": progress.seconds,
            "precision": progress.precision,
            "data": progress.data,
            "cloob": __version__,
            "torch": str(torch.__version__),
            "sha256": {file.name: sha256_of(file) for file in sorted(temporary.iterdir())},
        }
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders under `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name))


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are whole, and what is wrong with every newer one.

    Raises:
        TrainingError: there are checkpoints, and every one of them is damaged.
    """
    problems: list[str] = []
    found = checkpoints(folder)
    for path in reversed(found):
        problem = damage(path)
        if problem is None:
            return path, problems
        problems.append(f"the checkpoint {path} is damaged ({problem})")
    if found:
        raise TrainingError(f"every checkpoint in {folder} is damaged", "start again with another --out")
    return None, problems


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        hashes = json.loads((path / "state.json").read_text(encoding="utf-8"))["sha256"]
        wrong = [name for name, sha256 in hashes.items() if sha256_of(path / name) != sha256]
    except FileNotFoundError as missing:
        return f"{Path(missing.filename).name} is missing"
    except (OSError, ValueError, KeyError, AttributeError):
        return "state.json cannot be read"
    return f"{wrong[0]} is not what was written" if wrong else None


def load_progress(path: Path) -> Progress:
    """The `state.json` of a whole checkpoint."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Progress(state["step"], state["seconds"], state["precision"], state.get("data", {}))


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any | None,
    average: EMA | None,
    device: torch.device,
) -> None:
    """Put a whole checkpoint's tensors back; the main process reads them and sends them to the others over `device`."""
    from safetensors.torch import load_file

    def read(name: str) -> Any:
        if name.endswith(".safetensors"):
            return load_file(path / name)
        return torch.load(path / name, map_location="cpu", weights_only=True)

    model.load_state_dict(send_tensors(lambda: read("model.safetensors"), device))
    if average is not None:
        for name, tensor in send_tensors(lambda: read("average.safetensors"), device).items():
            average.tensors[name].copy_(tensor)
    stored = send_tensors(lambda: read("optimizer.pt"), device)
    optimizer.load_state_dict(stored["optimizer"])
    if scaler is not None and stored["scaler"]:
        scaler.load_state_dict(stored["scaler"])


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _remove(checkpoint: Path) -> None:
    # state.json goes first: a removal that is cut short leaves a folder that is known to be damaged.
    (checkpoint / "state.json").unlink(missing_ok=True)
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()
