"""The page of `cloob eval`: models side by side, each class, and confusions with examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloob_cli.atomic_files import replacing
from cloob_cli.data.thumbnails import media_type
from cloob_cli.path_text import path_text
from cloob_cli.report.links import link_to
from cloob_cli.report.page import data_uri, render, script_json


@dataclass(frozen=True)
class Example:
    """An image of a data set.

    Attributes:
        thumbnail: the bytes of a small image; none shows an empty frame.
        file: where the image is a file of its own, which the page links to.
    """

    name: str
    thumbnail: bytes = b""
    file: Path | None = None


@dataclass(frozen=True)
class Scores:
    """A record of results (`evaluation.results.Record.as_dict` with details) of a model on a data set, both by number.

    `examples` are images of the data set by their names; confusions of others show no image.
    """

    model: int
    dataset: int
    record: Mapping[str, Any]
    examples: Mapping[str, Example] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The subject of a page.

    Attributes:
        models, datasets: their names, by number.
        titles: headings of metrics.
        facts: lines about the whole: what, and its text.
    """

    models: Sequence[str]
    datasets: Sequence[str]
    scores: Sequence[Scores]
    titles: Mapping[str, str]
    facts: Sequence[tuple[str, str]] = ()


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write a page.

    Raises:
        OSError: it cannot be written.
    """
    from markupsafe import Markup

    examples = _Examples(path)
    results = {
        "models": list(evaluation.models),
        "sets": list(evaluation.datasets),
        "titles": dict(evaluation.titles),
        "records": [_record(scores, examples) for scores in evaluation.scores],
        "examples": examples.rows,
    }
    pieces = render(
        "evaluation.html",
        ["report.css", "evaluation.css"],
        ["theme.js", "tables.js", "evaluation.js"],
        title="eval " + ", ".join(evaluation.models),
        facts=list(evaluation.facts),
        results=Markup(script_json(results)),
    )
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream,
    ):
        stream.writelines(pieces)


class _Examples:
    """The images of a page, each once however many models confuse it."""

    def __init__(self, page: Path) -> None:
        self.rows: list[dict[str, str]] = []
        self._page = page
        self._numbers: dict[tuple[int, str], int] = {}

    def number(self, dataset: int, example: Example) -> int:
        key = (dataset, example.name)
        if key not in self._numbers:
            row = {"name": path_text(Path(example.name))}
            if example.thumbnail:
                row["image"] = data_uri(example.thumbnail, media_type(example.thumbnail))
            if example.file is not None:
                row["link"] = link_to(example.file, self._page)
            self._numbers[key] = len(self.rows)
            self.rows.append(row)
        return self._numbers[key]


def _record(scores: Scores, examples: _Examples) -> dict[str, Any]:
    record = scores.record
    known = scores.examples
    return {
        "set": scores.dataset,
        "model": scores.model,
        "task": record["task"],
        "metrics": record["metrics"],
        "intervals": record.get("intervals", {}),
        "images": record.get("images"),
        "skipped": record.get("skipped", 0),
        "published": record.get("published", {}).get("acc1"),
        "classes": [[one["class"], one["images"], round(one["recall"], 6)] for one in record.get("per_class", [])],
        "confusions": [
            [
                one["class"],
                one["predicted"],
                one["count"],
                [examples.number(scores.dataset, known[name]) for name in one["examples"] if name in known],
            ]
            for one in record.get("confusions", [])
        ],
    }
