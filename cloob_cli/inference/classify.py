"""Zero-shot classification: images and labels in, one row for each image out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloob_cli.core.model import CloobModel
from cloob_cli.core.zero_shot import class_embeddings, probabilities
from cloob_cli.data.images import Preprocess
from cloob_cli.errors import Failure
from cloob_cli.inference.encoding import device_of, encode_images
from cloob_cli.inference.labels import Label
from cloob_cli.inference.outputs import parquet_rows
from cloob_cli.inference.reading import OnImage, image_batches

# Called while labels are encoded: with the number of their texts that are done, and of all.
OnTexts = Callable[[int, int], None]

OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
# What a row may have beside its labels, in this order: the places that --sort-into gave to the image.
FURTHER = ("sorted_to",)


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

    `further` holds what options asked for beside them, by the names in `FURTHER`.
    """

    path: str
    top: list[Choice]
    further: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """`{"path", "label", "probability", "cosine", "top": [{"label", "probability", "cosine"}]}`, and `further`."""
        top = [choice.as_dict() for choice in self.top]
        return {"path": self.path, **self.top[0].as_dict(), "top": top, **self.further}

    def as_row(self) -> list[Any]:
        """path, then label, probability and cosine of every choice, then `further`: the cells of `columns`."""
        choices = [value for choice in self.top for value in choice.as_dict().values()]
        return [self.path, *choices, *map(_cell, self.further.values())]


@dataclass
class ClassifiedBatch:
    """Rows of consecutive images, and the images among them that could not be read."""

    rows: list[Classified]
    failures: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


def columns(top_k: int, further: Sequence[str] = ()) -> list[str]:
    """The names of the cells of a row: path, label, probability, cosine, label_2, ..., and `further`."""
    first = ["label", "probability", "cosine"]
    return ["path", *first, *(f"{name}_{rank}" for rank in range(2, top_k + 1) for name in first), *further]


def _cell(value: Any) -> Any:
    """A value as one cell of a table: a list becomes text."""
    return " | ".join(value) if isinstance(value, list) else value


def classify(
    model: CloobModel,
    paths: Iterable[Path | Failure],
    labels: Sequence[Label],
    templates: Sequence[str],
    *,
    top_k: int = 1,
    batch_size: int = 64,
    workers: int | None = None,
    fast_jpeg: bool = False,
    memory_budget: int | None = None,
    on_image: OnImage | None = None,
    on_texts: OnTexts | None = None,
) -> Generator[ClassifiedBatch]:
    """Classify images in their order; unreadable ones are failures of the batch they would have stood in.

    Probabilities are softmax(inv_tau · cosine) over all labels, with the inv_tau of the model's configuration.
    Where `top_k` exceeds the number of labels, all are given. Of equal cosines the label that stands first wins.
    `on_texts` and `on_image` are called as the work goes on.
    """
    names = [label.name for label in labels]
    classes = _encode_labels(model, labels, templates, batch_size, on_texts)
    preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)
    batches = image_batches(
        paths,
        preprocess,
        batch_size=batch_size,
        workers=workers,
        fast_jpeg=fast_jpeg,
        memory_budget=memory_budget,
        on_image=on_image,
    )
    with closing(batches):
        for batch in batches:
            rows = []
            if batch.paths:
                cosines = encode_images(model, batch.pixels) @ classes.T
                choices = _best(cosines, model.config.inv_tau, names, min(top_k, len(names)))
                rows = [Classified(path, top) for path, top in zip(batch.paths, choices, strict=True)]
            yield ClassifiedBatch(rows, batch.failures)


def _encode_labels(
    model: CloobModel, labels: Sequence[Label], templates: Sequence[str], batch_size: int, on_texts: OnTexts | None
) -> Tensor:
    total = sum(len(label.names) for label in labels) * len(templates)
    done = 0

    def encode(tokens: Tensor) -> Tensor:
        nonlocal done
        embeddings = model.encode_text(tokens)
        done += len(tokens)
        if on_texts:
            on_texts(done, total)
        return embeddings

    assert model.tokenize is not None
    names = [label.names for label in labels]
    return class_embeddings(
        encode, model.tokenize, names, templates, batch_size, device_of(model), model.config.text
    ).cpu()


def _best(cosines: Tensor, inv_tau: float, names: list[str], top_k: int) -> list[list[Choice]]:
    order = torch.sort(cosines, dim=1, descending=True, stable=True).indices[:, :top_k]
    fractions = probabilities(cosines, inv_tau).gather(1, order).tolist()
    kept = cosines.gather(1, order).tolist()
    return [
        [Choice(names[i], p, c) for i, p, c in zip(*row, strict=True)]
        for row in zip(order.tolist(), fractions, kept, strict=True)
    ]


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

    types = {"sorted_to": pa.list_(pa.string())}
    choice = [("label", pa.string()), ("probability", pa.float64()), ("cosine", pa.float64())]
    beside = [(name, types[name]) for name in further]
    schema = pa.schema(
        [("path", pa.string()), *choice, ("top", pa.list_(pa.struct(choice))), *beside], metadata=metadata
    )
    with parquet_rows(path, schema) as file:
        yield lambda rows: file.write(row.as_dict() for row in rows)
