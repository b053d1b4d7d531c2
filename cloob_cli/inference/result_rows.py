"""Rows of results: an image with its labels, as a dictionary and as the cells of a table; and files of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloob_cli.inference.row_writers import parquet_rows

OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")

# Beside its labels a row may have, in this order: the rejection score and what decided (--unknown, label trees), all
# labels (--multi-label), the conformal set (--calibration), and the places that --sort-into gave to the image.
FURTHER = ("rejection", "decided_by", "labels", "set", "sorted_to")


@dataclass(frozen=True)
class Choice:
    """One label for an image: softmax(inv_tau · cosine) over all labels, and the cosine itself."""

    label: str
    probability: float
    cosine: float

    def as_dict(self) -> dict[str, Any]:
        return {"label": self.label, "probability": self.probability, "cosine": self.cosine}


@dataclass(frozen=True)
class Classified:
    """An image with its best labels, best first, at least one.

    `further` holds what options asked for beside them, by the names in `FURTHER`. `answer` is the label that the image
    gets where that is not the best one.
    """

    path: str
    top: list[Choice]
    further: dict[str, Any] = field(default_factory=dict)
    answer: Choice | None = None

    @property
    def label(self) -> Choice:
        """The label that the image gets."""
        return self.answer or self.top[0]

    def as_dict(self) -> dict[str, Any]:
        """`{"path", "label", "probability", "cosine", "top": [{"label", "probability", "cosine"}]}`, and `further`."""
        top = [choice.as_dict() for choice in self.top]
        return {"path": self.path, **self.label.as_dict(), "top": top, **self.further}

    def as_row(self) -> list[Any]:
        """path, then label, probability and cosine of every choice, then `further`: the cells of `columns`."""
        choices = [value for choice in [self.label, *self.top[1:]] for value in choice.as_dict().values()]
        return [self.path, *choices, *map(_cell, self.further.values())]


def columns(top_k: int, further: Sequence[str] = ()) -> list[str]:
    """The names of the cells of a row: path, label, probability, cosine, label_2, ..., and `further`."""
    first = ["label", "probability", "cosine"]
    return ["path", *first, *(f"{name}_{rank}" for rank in range(2, top_k + 1) for name in first), *further]


def _cell(value: Any) -> Any:
    """A value as one cell of a table: a list becomes text."""
    if not isinstance(value, list):
        return value
    return " | ".join(one["label"] if isinstance(one, dict) else one for one in value)


Write = Callable[[Iterable[Classified]], None]


@contextmanager
def open_rows(
    path: Path, suffix: str, top_k: int, metadata: dict[str, str], further: Sequence[str] = ()
) -> Iterator[Write]:
    """Open a result file of the kind that `suffix` names; yields the function that appends rows.

    `metadata` go where the format has a place for them: into .parquet. `further` names what every row has beside its
    labels.
    """
    with (
        _csv(path, columns(top_k, further))
        if suffix == ".csv"
        else _jsonl(path)
        if suffix == ".jsonl"
        else _parquet(path, metadata, further)
    ) as write:
        yield write


@contextmanager
def _csv(path: Path, header: Sequence[str]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        # The csv module leaves a lone carriage return bare, which readers then take for the end of a row.
        quoting = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(header)

        def write(rows: Iterable[Classified]) -> None:
            for row in rows:
                cells = row.as_row()
                (quoting if any("\r" in str(cell) for cell in cells) else writer).writerow(cells)

        yield write


@contextmanager
def _jsonl(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as stream:
        yield lambda rows: stream.writelines(json.dumps(row.as_dict()) + "\n" for row in rows)


@contextmanager
def _parquet(path: Path, metadata: dict[str, str], further: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa

    choice = [("label", pa.string()), ("probability", pa.float64()), ("cosine", pa.float64())]
    texts = pa.list_(pa.string())
    types = {
        "rejection": pa.float64(),
        "decided_by": pa.string(),
        "labels": pa.list_(pa.struct(choice)),
        "set": texts,
        "sorted_to": texts,
    }
    beside = [(name, types[name]) for name in further]
    schema = pa.schema(
        [("path", pa.string()), *choice, ("top", pa.list_(pa.struct(choice))), *beside], metadata=metadata
    )
    with parquet_rows(path, schema) as file:
        yield lambda rows: file.write(row.as_dict() for row in rows)
