"""Checkpoints of a run: written, checked, loaded again.

    step-00001000/model.safetensors      the weights
    step-00001000/ema.safetensors        their moving average (with train.ema)
    step-00001000/projection.safetensors  the maps to a teacher's space (with teacher.projection)
    step-00001000/optimizer.pt           the state of the optimizer and of the gradient scaler
    step-00001000/state.json             step, fingerprint of the data, hashes of the other files; written last

Which sample comes when, the learning rate and the random numbers of a step are functions of the seed and the step
number, so a checkpoint needs no more than the tensors and the step.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cloob_cli.atomic_files import replacing_folder, sha256_of
from cloob_cli.errors import DiskSpaceError, TrainingError
from cloob_cli.training.ema import EMA
from cloob_cli.training.precision import Precision
from cloob_cli.training.processes import send_tensors
from cloob_cli.version import __version__

# No room on the disk; no room for this user; the largest file that this process may write.
_FULL_DISK = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        seconds: of training so far.
        precision: kept so that a continuation uses the same.
        data: the parts of its data (data_split.py); empty where the checkpoint does not say.
        start: sha256 of the weights and the configuration that the run started from (with `model.init`).
    """

    step: int
    seconds: float
    precision: Precision
    data: dict[str, Any] = field(default_factory=dict)
    start: str | None = None


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any | None,
    ema: EMA | None,
    keep: int,
    projection: torch.nn.Module | None = None,
) -> Path:
    """Write the checkpoint of a finished step under `folder`, then remove all but the newest `keep` up to that step.

    Later ones are damaged, or the run would have gone on from there: they do not count.
    """
    from safetensors.torch import save_file

    path = folder / f"step-{progress.step:08d}"
    with replacing_folder(path) as temporary:
        save_file(_plain(model.state_dict()), temporary / "model.safetensors")
        if ema is not None:
            save_file(_plain(ema.tensors), temporary / "ema.safetensors")
        if projection is not None:
            save_file(_plain(projection.state_dict()), temporary / "projection.safetensors")
        torch.save(
            {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None},
            temporary / "optimizer.pt",
        )
        state = {
            "step": progress.step,
            "seconds": progress.seconds,
            "precision": progress.precision,
            "data": progress.data,
            "start": progress.start,
            "cloob": __version__,
            "torch": str(torch.__version__),
            "sha256": {file.name: sha256_of(file) for file in sorted(temporary.iterdir())},
        }
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for old in [one for one in checkpoints(folder) if _step(one) <= progress.step][:-keep]:
        _remove(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders under `folder`, oldest first."""
    return sorted((p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are whole, and a notice for every newer one, which is damaged.

    Raises:
        TrainingError: there are checkpoints, and every one of them is damaged.
    """
    notices: list[str] = []
    found = checkpoints(folder)
    for path in reversed(found):
        problem = damage(path)
        if problem is None:
            return path, notices
        notices.append(f"the checkpoint {path} is damaged ({problem})")
    if found:
        raise TrainingError(f"every checkpoint in {folder} is damaged", "start again with another --out")
    return None, notices


def damage(path: Path) -> str | None:
    """Describe the damage to a checkpoint's files; None where they are whole."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        _, _, _, hashes = (state[name] for name in ("step", "seconds", "precision", "sha256"))
        wrong = [name for name, sha256 in hashes.items() if sha256_of(path / name) != sha256]
    except FileNotFoundError as missing:
        return f"{Path(missing.filename).name} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return "state.json cannot be read"
    return f"{wrong[0]} is not what was written" if wrong else None


def load_progress(path: Path) -> Progress:
    """Read the `state.json` of a whole checkpoint."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Progress(state["step"], state["seconds"], state["precision"], state.get("data", {}), state.get("start"))


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any | None,
    ema: EMA | None,
    device: torch.device,
    projection: torch.nn.Module | None = None,
) -> None:
    """Put a whole checkpoint's tensors back; the main process reads them and sends them to the others over `device`."""
    from safetensors.torch import load_file

    def read(name: str) -> Any:
        if name.endswith(".safetensors"):
            return load_file(path / name)
        return torch.load(path / name, map_location="cpu", weights_only=True)

    model.load_state_dict(send_tensors(lambda: read("model.safetensors"), device))
    if ema is not None:
        for name, tensor in send_tensors(lambda: read("ema.safetensors"), device).items():
            ema.tensors[name].copy_(tensor)
    if projection is not None:
        projection.load_state_dict(send_tensors(lambda: read("projection.safetensors"), device))
    stored = send_tensors(lambda: read("optimizer.pt"), device)
    optimizer.load_state_dict(stored["optimizer"])
    if scaler is not None and stored["scaler"]:
        scaler.load_state_dict(stored["scaler"])


@contextmanager
def full_disk_as_error(folder: Path, hint: Callable[[], str]) -> Iterator[None]:
    """Turn writes inside the block that fail for want of room into one error that names `folder`.

    Raises:
        DiskSpaceError: for them, with the hint that `hint` then gives.
    """
    try:
        yield
    except Exception as problem:
        if not _is_full_disk(problem):
            raise
        raise DiskSpaceError(f"{folder} cannot be written: no room is left on its disk", hint()) from problem


def _is_full_disk(problem: Exception) -> bool:
    """Recognize a full disk by whatever name the libraries that write call it."""
    if isinstance(problem, OSError):
        return problem.errno in _FULL_DISK
    text = str(problem)
    if type(problem).__name__ == "SafetensorError":  # its text ends with the system's number
        return any(f"os error {number})" in text or f"code: {number}," in text for number in _FULL_DISK)
    # torch.save keeps no number: its archive came out shorter than what was written to it.
    return isinstance(problem, RuntimeError) and "inline_container" in text


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _remove(checkpoint: Path) -> None:
    # What another program has open, or has put there, must not end the run: the next save tries again.
    with suppress(OSError):
        # state.json goes first: a removal that is cut short leaves a folder that is known to be damaged.
        (checkpoint / "state.json").unlink(missing_ok=True)
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
