"""Measurements of a run: time and losses between two reports, metrics.jsonl, the loss curve, collapse."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch

from cloob_cli.errors import MissingExtraError
from cloob_cli.files import replacing
from cloob_cli.recipe import ObjectiveSection
from cloob_cli.training.events import StepDone, Validated

# Chance moves the mean loss of equal embeddings by their rounding alone; a run that learns leaves this band at once.
_NEAR_COLLAPSE = 0.01  # of a loss in nats
_COLLAPSED_STEPS = 100  # steps at that value before it is told
_COLLAPSED_STEPS_AT_END = 20  # steps at that value that are told once the run is over


class Window:
    """The steps between two reports: their losses and gradient norms, and their time.

    The numbers stay on the device until they are asked for, so that a GPU need not wait after every step.
    """

    def __init__(self) -> None:
        self.images = 0
        self.waited = 0.0
        self._started = time.monotonic()
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, norm: torch.Tensor, images: int) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self.images += images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        start = time.monotonic()
        yield
        self._started += time.monotonic() - start

    def losses(self) -> list[float]:
        return torch.stack(self._losses).float().tolist() if self._losses else []

    def norms(self) -> list[float]:
        return torch.stack(self._norms).float().tolist() if self._norms else []

    def seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)


def memory_gib(device: torch.device) -> float:
    """Peak memory on a CUDA device, else what this process holds now, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


class MetricsFile:
    """Appends a row for every `StepDone` and `Validated`; rows beyond `first_step` (of a lost run) are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        kept = [row for row in read_rows(path) if row["step"] <= first_step] if path.exists() else []
        with replacing(path) as temporary:
            temporary.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._stream = path.open("a", encoding="utf-8")

    def add(self, event: StepDone | Validated) -> None:
        if isinstance(event, Validated):
            row = {"step": event.step, **event.metrics}
        else:
            row = {name: value for name, value in asdict(event).items() if name != "mechanism"} | event.mechanism
        self._stream.write(_line(row))
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class CollapseWatch:
    """Notices a run whose embeddings have all become the same: its loss sticks at the value that equal scores give.

    Counts the steps after the warm-ups with such a loss.

    Args:
        warm_up: steps in which such a loss is usual.
    """

    def __init__(self, objective: ObjectiveSection, batch_size: int, warm_up: int) -> None:
        # InfoLOOB leaves the positive out of the denominator, InfoNCE keeps it.
        leaves_out = objective.name in ("cloob", "infoloob")
        self._name = "log(batch size - 1)" if leaves_out else "log(batch size)"
        self._value = math.log(batch_size - leaves_out)
        self._warm_up, self._steps, self._told = warm_up, 0, False

    def add(self, step: int, losses: Sequence[float]) -> str | None:
        """Take the losses of the steps up to `step`; a notice, once, where they stick."""
        stuck = step - len(losses) >= self._warm_up and abs(fmean(losses) - self._value) < _NEAR_COLLAPSE
        self._steps = self._steps + len(losses) if stuck else 0
        if self._steps >= _COLLAPSED_STEPS and not self._told:
            self._told = True
            return self._text()
        return None

    def at_the_end(self) -> str | None:
        """A notice about a run that ends like this."""
        return self._text() if self._steps >= _COLLAPSED_STEPS_AT_END else None

    def _text(self) -> str:
        return (
            f"the loss has been {self._name} = {self._value:.3f} for {self._steps} steps: all embeddings are the same "
            "and nothing is learned; lengthen optimizer.warmup_steps or objective.hopfield_warmup, or lower "
            "optimizer.learning_rate"
        )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; what a crash left of a last line is left out."""
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # of text that is none, too
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def last_loss(path: Path, step: int) -> float:
    """The loss in the last row of a metrics.jsonl up to `step`; not a number where there is none."""
    rows = read_rows(path) if path.exists() else []
    found = [row["loss"] for row in rows if row.get("loss") is not None and row["step"] <= step]
    return found[-1] if found else math.nan


def draw_loss_curve(metrics: Path, image: Path) -> None:
    """Draw loss and learning rate over the steps of a metrics.jsonl as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `report`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.of("report", "matplotlib") from None
    rows = [row for row in read_rows(metrics) if "loss" in row]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss = figure.add_subplot(xlabel="step", ylabel="loss")
    loss.plot(steps, [row["loss"] for row in rows], color="tab:blue")
    rate = loss.twinx()
    rate.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray", linewidth=0.8)
    rate.set_ylabel("learning rate")
    with replacing(image) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _line(row: dict[str, Any]) -> str:
    # What is not finite has no place in JSON; a run whose loss is not has stopped anyway.
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}) + "\n"
