"""Events of a training run, in the order in which they happen. Displays and logs read these."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloob_cli.errors import Failure


@dataclass(frozen=True)
class Preparing:
    """A step of the preparation has begun; it may take a while."""

    text: str


@dataclass(frozen=True)
class Started:
    """The run is set up and its first step comes next."""

    steps: int
    first_step: int  # above 0: resumed
    device: str
    precision: str
    processes: int
    parameters: int
    pairs: int
    validation_pairs: int
    batch_size: int
    micro_batch_size: int | None
    loss_implementation: str = ""  # which implementation of the loss serves, and why


@dataclass(frozen=True)
class StepDone:
    """Averages over the steps since the last one of these. `step` counts finished steps."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    images_per_second: float
    data_wait_fraction: float  # of the time
    seconds_left: float
    memory_gib: float
    gradient_norm: float
    inv_tau: float
    mechanism: dict[str, float] = field(default_factory=dict)  # measures of the retrieval, at every tenth of these


@dataclass(frozen=True)
class Validated:
    """Scores on held-out data after `step` steps, by their names in metrics.jsonl."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Blended:
    """Scores of the weights `alpha` of the way from the start of a run to its end; `chosen`: those that are saved."""

    alpha: float
    metrics: dict[str, float]
    chosen: bool


@dataclass(frozen=True)
class CheckpointSaved:
    step: int
    path: Path


class PairSkipped(Failure):
    """A pair that could not be read; it is counted and listed, and training goes on."""


@dataclass(frozen=True)
class Notice:
    """Something that went on but not as asked."""

    text: str


@dataclass(frozen=True)
class Finished:
    step: int
    model_folder: Path
    metrics: dict[str, Any]
    skipped: int
    seconds: float
    already: bool = False  # it was done before, and this time nothing was


Event = Preparing | Started | StepDone | Validated | Blended | CheckpointSaved | PairSkipped | Notice | Finished
