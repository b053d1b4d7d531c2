"""The documented JSON Schemas are those of the classes, and real output fits them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from command_line import cloob_here
from script_module import script_module
from tiny_model import save_images, save_tiny_model

LABELS = ["--label", "cat", "--label", "dog", "-m", "model"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_module("make_schemas")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    save_tiny_model(folder / "model", context_length=40)
    save_images(folder / "labeled" / "cat", 3)
    save_images(folder / "labeled" / "strange", 2, suffix=".jpg")
    (folder / "labeled" / "cat" / "broken.png").touch()
    return folder


def run(place: Path, *arguments: object) -> str:
    return cloob_here(*arguments, "--json", "-q", cwd=place).stdout


@pytest.fixture(scope="module")
def fitted(place: Path) -> str:
    options = [*LABELS, "--calibration", "cal.json", "--conformal", 0.5]
    return run(place, "classify", "--calibrate", "labeled", *options)


def test_the_schemas_are_up_to_date(script: ModuleType) -> None:
    for name, model in script.SCHEMAS.items():
        written = (script.FOLDER / f"{name}.json").read_text("utf-8")
        assert json.loads(written) == json.loads(script.schema_text(model)), name  # releases of pydantic write 1 or 1.0
    assert {path.stem for path in script.FOLDER.iterdir()} == set(script.SCHEMAS)


def test_a_calibration_fits(fitted: str, script: ModuleType) -> None:
    script.Calibration.model_validate_json(fitted)


@pytest.mark.parametrize(
    ("options", "further"),
    [
        ([], set()),
        (["--top-k", 2], set()),
        (["--unknown", "none", "--threshold", 0.7], {"rejection", "decided_by"}),
        (["--multi-label"], {"decided_by", "labels"}),
        (["--label", "thing > roof"], {"decided_by"}),
        (["--examples", "labeled"], set()),
        (["--sort-into", "sorted"], {"sorted_to"}),
        (["--calibration", "cal.json"], {"set"}),
    ],
)
def test_rows_fit(place: Path, fitted: str, script: ModuleType, options: list[object], further: set[str]) -> None:
    lines = run(place, "classify", "labeled", *LABELS, *options).splitlines()
    assert len(lines) == 5
    for line in lines:
        script.ClassifyRow.model_validate_json(line)
        first = {"path", "label", "probability", "cosine", "top"}
        assert set(json.loads(line)) == first | further
    required = json.loads((ROOT / "docs/schemas/classify-row.json").read_text())["required"]
    assert set(required) == first


def test_other_documents_fit(place: Path, script: ModuleType) -> None:
    embedded = run(place, "embed", "labeled", "-m", "model", "-o", "emb.npy")
    assert script.EmbedResult.model_validate_json(embedded).skipped == 1
    layout = run(place, "embed", "labeled", "-m", "model", "-o", "layout", "--layout", "clip-retrieval")
    assert script.EmbedResult.model_validate_json(layout).captions is None
    for line in (place / "emb.failures.jsonl").read_text().splitlines():
        script.Failure.model_validate_json(line)
    for line in run(place, "search", "emb.npy", "a cat", "-m", "model").splitlines():
        script.SearchHit.model_validate_json(line)
    shutil.copyfile(place / "labeled/cat/0000.png", place / "labeled/cat/copy.png")
    [group] = run(place, "dedupe", "labeled", "--identical").splitlines()
    assert script.DuplicateGroup.model_validate_json(group).kind == "exact"
    (place / "labeled/cat/copy.png").unlink()
    run(place, "classify", "labeled", "--label", "cat", "-m", "model", "--sort-into", "out", "--undo-file", "u.jsonl")
    (place / "out/cat/0000.png").write_bytes(b"edited")
    assert len(script.UndoResult.model_validate_json(run(place, "undo", "u.jsonl")).kept) == 1
