"""`cloob analyze`: its numbers are those of the functions, its forms of output, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import cloob_here
from pair_files import write_folder
from PIL import Image
from tiny_model import save_tiny_model
from tiny_run import write_class_folders

from cloob_cli import load
from cloob_cli.data.captioned_images import open_captioned_set
from cloob_cli.evaluation import analysis
from cloob_cli.evaluation.embeddings import Embedder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    save_tiny_model(folder / "model", scale_hopfield=8.0)
    write_folder(folder / "pairs", range(12))
    write_class_folders(folder / "colors")
    return folder


def test_the_document_holds_what_the_functions_give(place: Path) -> None:
    done = cloob_here(
        "analyze", "model", "pairs", "--scale-hopfield", 8, "--scale-hopfield", 40, "--json", "-o", "out.json",
        "--plots", "plots", "--device", "cpu", cwd=place, CLOOB_HOME=str(place / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((place / "out.json").read_text())
    assert sorted(path.name for path in (place / "plots").iterdir()) == ["retrieval.png", "spectrum.png"]
    embedder = Embedder(load(str(place / "model"), device="cpu"), "tiny")
    pairs = analysis.embed_pairs(embedder, open_captioned_set(place / "pairs"), range(12))
    assert found["embeddings"] == analysis.geometry(pairs.images, pairs.texts)
    assert [one["scale_hopfield"] for one in found["retrieval"]] == [8.0, 40.0]
    assert found["retrieval"][1] == analysis.after_retrieval(pairs, 40.0)
    for one in found["retrieval"]:
        for stored in ("from_images", "from_texts"):
            ends = one[stored]["fixed_points"]
            assert sum(ends[name] for name in ("single", "cluster", "global")) - 1.0 < 1e-9
            assert 1 <= one[stored]["image"]["effective_patterns"]["median"] <= 12
    assert found["retrieval"][0]["from_images"]["together"][0]["query"] == "image number 0"


def test_classes_as_texts_and_a_table(place: Path) -> None:
    done = cloob_here("analyze", "model", "colors", "--limit", 10, cwd=place)
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header[:3] == ["embeddings", "scale", "eigenvalues 99 %"]
    assert [row[0] for row in rows[:3]] == ["images", "texts", "images from images"]
    assert len(rows) == 2 + 4 * len(analysis.SCALES)


def test_a_document_of_its_own_is_replaced_and_no_other(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    for text in ('{"my": "settings"}', "[]", "{"):
        output.write_text(text, encoding="utf-8")
        done = cloob_here("analyze", "model", "pairs", "-o", output, cwd=place)
        assert (done.returncode, done.stdout) == (2, "")
        assert "`cloob analyze` did not write it" in done.stderr
        assert output.read_text(encoding="utf-8") == text
    command = ["analyze", "model", "pairs", "--scale-hopfield", 8, "-o", output]
    assert cloob_here(*command, "--force", cwd=place).returncode == 0
    done = cloob_here(*command, "--limit", 3, cwd=place)
    assert f"wrote {output}" in done.stderr
    assert json.loads(output.read_text(encoding="utf-8"))["pairs"] == 3


def test_plots_of_its_own_are_replaced_and_no_other_images(place: Path, tmp_path: Path) -> None:
    image = tmp_path / "retrieval.png"
    Image.new("RGB", (3, 3)).save(image)
    before = image.read_bytes()
    command = ["analyze", "model", "pairs", "--scale-hopfield", 8, "--plots", tmp_path]
    done = cloob_here(*command, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{image} exists, and `cloob analyze` did not write it" in done.stderr
    assert image.read_bytes() == before
    image.unlink()
    for _ in range(2):
        done = cloob_here(*command, cwd=place)
        assert done.returncode == 0, done.stderr
        assert f"wrote {image}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model", "pairs", "--plots", "model/config.json"), "is not a folder"),
        (("model", "nowhere"), "no data set at nowhere"),
        (("model", "pairs", "--scale-hopfield", 0), "above 0"),
        (("model", "pairs", "-o", "out.csv"), "unknown file type"),
        (("nowhere", "pairs"), "unknown model"),
    ],
)
def test_bad_input_is_a_code_and_a_line(place: Path, arguments: tuple[object, ...], says: str) -> None:
    done = cloob_here("analyze", *arguments, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
