"""Write the JSON Schemas of what commands print with --json, docs/schemas/NAME.json.

python scripts/make_schemas.py            writes them
python scripts/make_schemas.py --check    exit code 1 where one of them is out of date

The classes are the schemas' source; tests/test_schemas.py holds real output against them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cloob_cli.inference.calibration import Calibration

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
Probability = Annotated[float, Field(ge=0, le=1, description="softmax over all labels, or with --multi-label its own")]


class Output(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Choice(Output):
    label: str
    probability: Probability
    cosine: float


class ClassifyRow(Output):
    """A line of `cloob classify --json` and of its .jsonl files, and a row of its .parquet files."""

    path: Annotated[str, Field(description="as given; bytes that are not UTF-8 as \\xNN")]
    label: Annotated[str, Field(description="the answer: the best label, one above it in a tree, or --unknown's NAME")]
    probability: Probability
    cosine: float
    top: Annotated[list[Choice], Field(min_length=1, description="the best labels, best first (--top-k)")]
    rejection: Annotated[float, Field(description="--unknown: the higher, the less known")] = 0.0
    decided_by: Annotated[
        Literal["best", "leaf", "ancestor", "unsure", "rejection", "threshold"],
        Field(description="--unknown, --multi-label and trees of labels: docs/answers.md"),
    ] = "best"
    labels: Annotated[list[Choice], Field(description="--multi-label: every label that is likely by itself")] = []
    set: Annotated[list[str], Field(description="the conformal set, where the calibration has one")] = []
    sorted_to: Annotated[list[str], Field(description="--sort-into: the new places of the image")] = []


class Failure(Output):
    """A line of .failures.jsonl: an input that was skipped."""

    path: str
    reason: str


class EmbedResult(Output):
    """The document of `cloob embed --json`."""

    embeddings: str
    index: str
    failures: str | None
    captions: Annotated[str | None, Field(description="With --layout clip-retrieval, of images.")] = None
    rows: Annotated[int, Field(ge=1)]
    skipped: Annotated[int, Field(ge=0)]


class SearchHit(Output):
    """A line of `cloob search --json`, best first."""

    path: str
    score: float


class DuplicateCopy(Output):
    """An image of a group of duplicates."""

    path: str
    match: Annotated[Literal["best", "exact", "near"], Field(description="what it has in common with the best copy")]
    width: int
    height: int
    size: Annotated[int, Field(description="bytes")]
    sha256: Annotated[str, Field(description="of the file; empty where it changed while it was indexed")]
    cosine: Annotated[float | None, Field(description="of the embeddings, to the best copy; null: equal bytes")]
    bits: Annotated[int | None, Field(description="of 64, in which the perceptual hashes differ from the best copy's")]


class DuplicateGroup(Output):
    """A line of `cloob dedupe --json`: images of one subject, best copy first."""

    kind: Literal["exact", "near"]
    images: Annotated[list[DuplicateCopy], Field(min_length=2)]


class UndoResult(Output):
    """The document of `cloob undo --json`."""

    undone: Annotated[int, Field(ge=0)]
    kept: list[Failure]


SCHEMAS: dict[str, type[BaseModel]] = {
    "classify-row": ClassifyRow,
    "failure": Failure,
    "calibration": Calibration,
    "embed": EmbedResult,
    "search-hit": SearchHit,
    "duplicate-group": DuplicateGroup,
    "undo": UndoResult,
}


def schema_text(model: type[BaseModel]) -> str:
    """The JSON Schema of a class, draft 2020-12."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(_without_defaults(schema), indent=1) + "\n"


def _without_defaults(value: Any) -> Any:
    """Leave defaults out: a key that was not asked for is absent, and means nothing."""
    if isinstance(value, dict):
        return {key: _without_defaults(inner) for key, inner in value.items() if key != "default"}
    return [_without_defaults(inner) for inner in value] if isinstance(value, list) else value


def main() -> int:
    texts = {FOLDER / f"{name}.json": schema_text(model) for name, model in SCHEMAS.items()}
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path.name} is out of date: run python scripts/make_schemas.py")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
