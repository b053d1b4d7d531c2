"""Results of evaluations: records in CLIP_benchmark's schema, as JSON and as CSV.

A record is what CLIP_benchmark writes for one model, data set and task (`dataset`, `model`, `pretrained`, `task`,
`metrics`, `language`), with the names of its metrics, and more beside them: intervals, counts, what was skipped.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cloob_cli.errors import Failure, InputError

Task = Literal["zero-shot", "retrieval", "linear-probe", "few-shot"]
LEARNING: tuple[Task, ...] = ("linear-probe", "few-shot")  # those that need images to learn from
TASK_NAMES: dict[Task, str] = {  # in the records; the first three are CLIP_benchmark's
    "zero-shot": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "linear-probe": "linear_probe",
    "few-shot": "few_shot",
}


@dataclass(frozen=True)
class ClassScore:
    """One class: how many images it has, and the fraction of them that is right."""

    name: str
    images: int
    recall: float


@dataclass(frozen=True)
class Confusion:
    """`count` images of class `label` were taken for `predicted`; `examples` names some, the most confident first."""

    label: str
    predicted: str
    count: int
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Published:
    """The accuracy that was published of a model, in [0, 1], and where it stands."""

    acc1: float
    by: str | None


@dataclass
class Record:
    """The scores of one model on one data set.

    Attributes:
        metrics: by CLIP_benchmark's names; fractions in [0, 1], NaN where a metric is not defined.
        intervals: of some of them, (low, high), 95 %.
        counts: how many images, classes or texts there were.
        ties: examples whose score depends on how ties are counted (they are counted against the model).
        settings: what else the numbers depend on.
        failures: images that could not be read; they do not count.
    """

    dataset: str
    model: str
    task: Task
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ties: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[ClassScore] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    published: Published | None = None

    def as_dict(self, details: bool = False) -> dict[str, Any]:
        """The record as JSON has it (NaN as null); with `details` also each class and the confusions."""
        found: dict[str, Any] = {
            "dataset": self.dataset,
            "model": self.model,
            "pretrained": "",
            "task": TASK_NAMES[self.task],
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
            "language": "en",
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            **self.counts,
            "skipped": len(self.failures),
            "ties": self.ties,
            "settings": self.settings,
        }
        if self.published is not None:
            found["published"] = {"acc1": self.published.acc1, "by": self.published.by}
        if details and self.classes:
            found["per_class"] = [
                {"class": one.name, "images": one.images, "recall": one.recall} for one in self.classes
            ]
            found["confusions"] = [
                {"class": one.label, "predicted": one.predicted, "count": one.count, "examples": one.examples}
                for one in self.confusions
            ]
        return found


def metric_names(records: Iterable[dict[str, Any]]) -> list[str]:
    """The names of all metrics of some records, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name in record["metrics"]))


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV: dataset, model, task, then each metric and the two ends of its interval, if any has one.

    The last column is the hash of the model's weights, which tells models of one name apart.
    """
    names = metric_names(records)
    bounded = {name for record in records for name in record.get("intervals", {})}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ["dataset", "model", "task"]
    for name in names:
        header += [name, f"{name}_low", f"{name}_high"] if name in bounded else [name]
    writer.writerow([*header, "weights_sha256"])
    for record in records:
        row = [record["dataset"], record["model"], record["task"]]
        for name in names:
            row.append(_cell(record["metrics"].get(name)))
            if name in bounded:
                row += [_cell(end) for end in record.get("intervals", {}).get(name, (None, None))]
        writer.writerow([*row, record.get("settings", {}).get("weights_sha256", "")])
    return stream.getvalue()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON file; one of CLIP_benchmark's own files holds a single one.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{path} cannot be read as JSON: {problem}") from None
    records = found if isinstance(found, list) else [found]
    keys = {"dataset", "model", "task", "metrics"}
    if not all(isinstance(record, dict) and record.keys() >= keys for record in records):
        raise InputError(f"{path} does not hold results of `cloob eval`", "expected a list of records")
    return records


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))
