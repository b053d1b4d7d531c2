"""metrics.jsonl: a row for each report of a run, written and read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloob_cli.atomic_files import replacing
from cloob_cli.training.events import StepDone, Validated


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


def _line(row: dict[str, Any]) -> str:
    # What is not finite has no place in JSON; a run whose loss is not has stopped anyway.
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}) + "\n"
