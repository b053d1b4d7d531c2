"""`cloob classify --calibrate`, `--calibration` and `--examples`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from command_line import cloob_here
from margins import within
from tiny_model import save_images, save_tiny_model

import cloob_cli
from cloob_cli.core.few_shot import choose_retrieval, retrieval_logits
from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES

LABELS = ["--label", "cat", "--label", "dog", "-m", "model"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and 30 images in three folders, one of which is no label's."""
    folder = tmp_path_factory.mktemp("calibrate")
    save_tiny_model(folder / "model", context_length=40)
    save_tiny_model(folder / "other", context_length=40, inv_tau=12.0, embed_dim=8)
    for number, image in enumerate(save_images(folder / "all", 30)):
        name = ["cat", "dog", "strange"][number % 3]
        (folder / "labeled" / name).mkdir(parents=True, exist_ok=True)
        os.link(image, folder / "labeled" / name / image.name)
    return folder


def run(place: Path, *arguments: object) -> tuple[int, str, str]:
    result = cloob_here("classify", *arguments, cwd=place)
    return result.returncode, result.stdout, result.stderr


def test_a_calibration_is_written_reported_and_used(place: Path) -> None:
    options = [*LABELS, "--calibration", "cal.json", "--conformal", 0.8]
    code, out, err = run(place, "--calibrate", "labeled", *options, "--json")
    assert code == 0, err
    assert "10 images of 'strange', which is no label, count as unknown" in err
    fitted = json.loads(out)
    assert json.loads((place / "cal.json").read_text()) == fitted
    assert (fitted["images"], fitted["unknown_images"], fitted["rejection"]) == (20, 10, "energy")
    rows = [json.loads(line) for line in run(place, "labeled", *LABELS, "--json", "-q")[1].splitlines()]
    found = run(place, "labeled", *LABELS, "--json", "-q", "--calibration", "cal.json", "--unknown", "other")
    assert (found[0], found[2]) == (0, "")
    calibrated = [json.loads(line) for line in found[1].splitlines()]
    right = [
        (row["label"] if row["decided_by"] == "best" else row["top"][0]["label"]) == Path(row["path"]).parent.name
        for row in calibrated
    ]
    assert sum(right) / 20 == fitted["accuracy"]
    kept = [row["rejection"] <= fitted["threshold"] for row in calibrated]
    known = [Path(row["path"]).parent.name != "strange" for row in calibrated]
    assert sum(a and b for a, b in zip(kept, known, strict=True)) / 20 == fitted["known_kept"]
    assert [row["label"] != "other" for row in calibrated] == kept
    for row, plain in zip(calibrated, rows, strict=True):
        assert [choice["label"] for choice in row["top"]] == [choice["label"] for choice in plain["top"]]
        assert row["top"][0]["label"] in row["set"]
    held = [
        Path(row["path"]).parent.name in row["set"] for row, is_known in zip(calibrated, known, strict=True) if is_known
    ]
    assert sum(held) / 20 >= 0.8
    again = run(place, "--calibrate", "labeled", *options)
    assert again[0] == 0  # its own file is replaced
    assert again[1].splitlines()[0] == "what\tvalue"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "cat", "-m", "model"], "is for other labels than these"),
        (["--label", "dog", "--label", "cat", "-m", "model"], "is for other labels than these"),
        (["--label", "cat", "--label", "dog", "-m", "other"], "is for other model than these"),
        ([*LABELS, "--examples", "labeled"], "is for other examples than these"),
        ([*LABELS, "--templates", "t.txt"], "is for other templates than these"),
        ([*LABELS, "--unknown", "x", "--rejection", "cosine"], "has a threshold for the energy score"),
    ],
)
def test_a_calibration_for_something_else_is_refused(place: Path, options: list[str], message: str) -> None:
    (place / "t.txt").write_text("an image of {c}\n")
    if not (place / "base.json").exists():
        assert run(place, "--calibrate", "labeled", *LABELS, "--calibration", "base.json")[0] == 0
    code, out, err = run(place, "all", *options, "--calibration", "base.json")
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all", "--calibrate", "labeled", "--calibration", "c.json"], "--calibrate takes no DIR"),
        (["--calibrate", "labeled"], "needs --calibration FILE"),
        (["--calibrate", "all", "--calibration", "c.json"], "no folders of images"),
        (["--calibrate", "labeled", "--calibration", "model/config.json"], "exists, and is no calibration"),
        (["--calibrate", "labeled", "--calibration", "c.json", "--sort-into", "x"], "--calibrate files no images"),
        (["all", "--conformal", "0.9"], "--conformal is for --calibrate"),
        (["all", "--calibration", "model/config.json"], "is not a calibration file"),
        (["all", "--calibration", "missing.json"], "cannot be read"),
        (["all", "--examples", "labeled", "--multi-label"], "--examples compares labels"),
        ([], "no DIR to classify"),
    ],
)
def test_wrong_use(place: Path, arguments: list[str], message: str) -> None:
    code, out, err = run(place, *arguments, *LABELS)
    assert (code, out) == (2, ""), err
    assert message in err
    assert not (place / "c.json").exists()


@pytest.mark.numeric
def test_rows_with_examples_are_those_of_a_plain_loop(place: Path) -> None:
    code, out, err = run(place, "all", *LABELS, "--examples", "labeled", "--json")
    assert code == 0
    assert "--examples: 10 images of 'strange', which is no label, are left out" in err
    m = cloob_cli.load(str(place / "model"), device="cpu")
    from PIL import Image

    def embed(path: Path) -> torch.Tensor:
        return m.encode_image(m.preprocess(Image.open(path))[None])[0]

    def centered(rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return (rows - mean) / (rows - mean).norm(dim=1, keepdim=True)

    texts = []
    for name in ("cat", "dog"):
        mean = m.encode_text(m.tokenize([template.replace("{c}", name) for template in DEFAULT_TEMPLATES])).mean(0)
        texts.append(mean / mean.norm())
    paths = [path for name in ("cat", "dog") for path in sorted((place / "labeled" / name).iterdir())]
    with torch.no_grad():
        examples, labels = torch.stack([embed(path) for path in paths]), torch.tensor([0] * 10 + [1] * 10)
        stored = torch.stack(texts)
        means = examples.mean(0), stored.mean(0)
        examples, stored = (centered(rows, mean) for rows, mean in zip((examples, stored), means, strict=True))
        choice = choose_retrieval(stored, examples, labels)
        assert f"20 examples of 2 labels; retrieval with beta {choice.beta:g}" in err
        for row in map(json.loads, out.splitlines()):
            query = centered(embed(place / row["path"])[None], means[0])
            logits = retrieval_logits(query, stored, examples, labels, choice)
            expected = torch.softmax(logits, 1)[0]
            assert row["label"] == ["cat", "dog"][int(expected.argmax())]
            within(
                abs(row["probability"] - float(expected.max())),
                5e-4,
                "beta of at most 50 times 40 EPS, and as much again by centering",
            )


def test_examples_alone_name_the_labels(place: Path) -> None:
    code, out, err = run(place, "all", "--examples", "labeled", "-m", "model", "--json", "-q")
    assert (code, err) == (0, "")
    labels = {Path(path).name: path.parent.name for path in (place / "labeled").glob("*/*.png")}
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["label"] for row in rows} <= {"cat", "dog", "strange"}
    assert len(rows) == len(labels) == 30


def test_an_example_that_cannot_be_read_is_named(place: Path) -> None:
    (place / "some" / "cat").mkdir(parents=True)
    (place / "some" / "cat" / "broken.png").write_bytes(b"no image")
    code, out, err = run(place, "all/0000.png", *LABELS, "--examples", "some", "--json")
    assert (code, out) == (2, "")
    assert "not one example can be read" in err
    os.link(place / "all/0000.png", place / "some/cat/0000.png")
    code, out, err = run(place, "all/0000.png", *LABELS, "--examples", "some", "--json")
    assert code == 3
    assert json.loads(out)["label"] == "cat"
    assert "some/cat/broken.png" in err
