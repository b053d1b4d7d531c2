"""`cloob classify` with --unknown, --multi-label, --reference and label trees."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import cloob_here
from margins import within
from tiny_model import save_images, save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    save_tiny_model(folder / "model", context_length=40)
    save_tiny_model(folder / "other", context_length=40, embed_dim=16, inv_tau=12.0, vision={
        "kind": "vit", "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2
    })  # fmt: skip
    save_images(folder / "images", 6)
    (folder / "labels.txt").write_text("animal > cat\nanimal > dog\nroof\n")
    return folder


def objects(place: Path, *options: object) -> list[dict]:
    command = ["classify", "images", "-l", "labels.txt", "-m", "model", "--json", "-q", *options]
    result = cloob_here(*command, cwd=place)
    assert (result.returncode, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("method", ["energy", "cosine", "softmax", "empty"])
def test_every_row_has_a_rejection_score_and_the_threshold_decides(place: Path, method: str) -> None:
    rows = objects(place, "--unknown", "other", "--rejection", method, "--threshold", 1000)
    scores = sorted(row["rejection"] for row in rows)
    assert "other" not in {row["label"] for row in rows if row["decided_by"] != "unsure"}
    middle = (scores[2] + scores[3]) / 2
    again = objects(place, "--unknown", "other", "--rejection", method, "--threshold", middle)
    assert [row["rejection"] for row in again] == [row["rejection"] for row in rows]
    for row in again:
        assert (row["decided_by"] == "rejection") == (row["rejection"] > middle)
        assert row["label"] == "other" or row["rejection"] <= middle
        assert row["top"][0]["label"] in {"cat", "dog", "roof"}


@pytest.mark.numeric
def test_the_score_is_that_of_the_reference_where_there_is_one(place: Path) -> None:
    cloob_here("embed", "images", "-o", "emb.npy", "-m", "model", "-q", cwd=place)
    rows = objects(place, "--unknown", "other", "--rejection", "cosine", "--threshold", 0.5, "--reference", "emb.npy")
    for row in rows:  # every image is its own pattern
        within(abs(row["rejection"]), 1e-5, "a cosine in float32, of embeddings from batches of another size")
    assert all(row["label"] != "other" or row["decided_by"] == "unsure" for row in rows)
    cloob_here("embed", "images", "-o", "foreign.npy", "-m", "other", "-q", cwd=place)
    (place / "alone.npy").write_bytes((place / "emb.npy").read_bytes())
    for name, message in (("foreign", "of another model"), ("alone", "not embeddings"), ("missing", "not embeddings")):
        options = ["--unknown", "other", "--reference", f"{name}.npy"]
        result = cloob_here("classify", "images", "-l", "labels.txt", "-m", "model", *options, cwd=place)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr


def test_files_and_columns_hold_what_json_holds(place: Path) -> None:
    options = ["--unknown", "other", "--multi-label", "--threshold", 0.3, "--top-k", 2]
    rows = objects(place, *options)
    names = ["path", "label", "probability", "cosine", "top", "rejection", "decided_by", "labels"]
    assert all(list(row) == names for row in rows)
    for name in ("out.parquet", "out.csv", "out.csv"):
        result = cloob_here("classify", "images", "-l", "labels.txt", "-m", "model", *options, "-o", name, cwd=place)
        assert result.returncode == 0, result.stderr
    assert pq.read_table(place / "out.parquet").to_pylist() == rows
    header, *lines = (place / "out.csv").read_text().splitlines()
    assert header == "path,label,probability,cosine,label_2,probability_2,cosine_2,rejection,decided_by,labels"
    plain = cloob_here("classify", "images", "-l", "labels.txt", "-m", "model", "-q", *options, cwd=place)
    assert plain.stdout.splitlines()[0] == header.replace(",", "\t")
    assert len(lines) == len(plain.stdout.splitlines()) - 1 == len(rows)
    assert lines[0].split(",")[-1] == " | ".join(one["label"] for one in rows[0]["labels"])


def test_answers_of_a_tree_are_sorted_into_folders_of_folders(place: Path) -> None:
    rows = objects(
        place,
        "--sort-into",
        "sorted",
        "--sort-mode",
        "hardlink",
        "--sure",
        0.99,
        "--unknown",
        "other",
        "--threshold",
        9,
    )
    assert {row["decided_by"] for row in rows} <= {"leaf", "ancestor", "unsure"}
    folders = {"cat": "animal/cat", "dog": "animal/dog", "animal": "animal", "roof": "roof", "other": "other"}
    for row in rows:
        assert row["sorted_to"] == [f"sorted/{folders[row['label']]}/{Path(row['path']).name}"]


def test_the_threshold_is_that_of_the_reference_where_nobody_chose_one(place: Path) -> None:
    cloob_here("embed", "images", "-o", "known.npy", "-m", "model", "-q", cwd=place)
    command = ["classify", "images", "--label", "cat", "-m", "model", "--unknown", "other", "--reference", "known.npy"]
    result = cloob_here(*command, cwd=place)
    assert (result.returncode, "other\t" in result.stdout) == (0, False)
    assert "images are 'other' where the energy score exceeds" in result.stderr
    assert "0.77" not in result.stderr
    assert "warning" not in result.stderr


def test_a_threshold_that_nobody_chose_is_named(place: Path) -> None:
    result = cloob_here("classify", "images", "-l", "labels.txt", "-m", "model", "--unknown", "other", cwd=place)
    assert result.returncode == 0
    assert "images are 'other' where the energy score exceeds 0.77" in result.stderr
    assert (
        "warning: that threshold was measured with cloob-xs-pictograms; scores of tiny lie elsewhere" in result.stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "0.5"], "--threshold is for --unknown or --multi-label"),
        (["--unknown", "cat"], "is the name of a label too"),
        (["--unknown", "animal"], "is the name of a label too"),
        (["--unknown", " "], "--unknown is empty"),
        (["--unknown", "caf\udce9"], "--unknown is not UTF-8"),
        (["--rejection", "cosine"], "choose the score of --unknown"),
        (["--unknown", "other", "--multi-label", "--rejection", "cosine"], "choose the score of --unknown"),
        (["--unknown", "other", "--threshold", "nan"], "--threshold is not a number"),
        (["--multi-label", "--sort-into", "x", "--sort-mode", "move"], "no single folder"),
        (["--label", "roof > animal", "--label", "dog > roof"], "stands already"),
        (["--label", "cat > animal"], "stand below each other"),
    ],
)
def test_options_that_do_not_go_together(place: Path, options: list[str], message: str) -> None:
    result = cloob_here("classify", "images", "-l", "labels.txt", "-m", "model", *options, cwd=place)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
