"""`cloob classify --html`: the page beside the result, and what was chosen on it read back."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from command_line import COMMAND, cloob_here, environment
from gallery_rows import rows_of
from PIL import Image
from tiny_model import save_images, save_tiny_model

from cloob_cli.data.classification import open_classification_set
from cloob_cli.path_text import path_text

OPTIONS = ["--model", "model", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and six images of which one cannot be read."""
    folder = tmp_path_factory.mktemp("classify-html")
    save_tiny_model(folder / "model", context_length=40)
    save_images(folder / "images", 3)
    save_images(folder / "images" / "deeper", 2, suffix=".jpg")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    (folder / "labels.txt").write_text("cat\ndog\n<b>sea</b>\nroof\n", encoding="utf-8")
    return folder


def test_the_page_has_the_rows_of_the_result(place: Path, tmp_path: Path) -> None:
    arguments = ["classify", "images", "-l", "labels.txt", *OPTIONS, "--json"]
    plain = cloob_here(*arguments, cwd=place)
    result = cloob_here(*arguments, "--html", tmp_path / "report.html", cwd=place)
    assert result.returncode == 3, result.stderr
    assert result.stdout == plain.stdout
    rows, expected = rows_of(tmp_path / "report.html"), [json.loads(line) for line in plain.stdout.splitlines()]
    assert [row["p"] for row in rows] == [one["path"] for one in expected]
    assert [row["l"] for row in rows] == [one["label"] for one in expected]
    for row, one in zip(rows, expected, strict=True):
        assert row["v"] == [round(one["probability"], 6), round(one["cosine"], 6)]
        assert row["c"][0][0] == one["label"]
        assert len(row["c"]) == 4  # more than the result's one: those that can be chosen
        assert Path(os.path.normpath(tmp_path / row["h"])) == place / one["path"]
        thumbnail = Image.open(io.BytesIO(base64.b64decode(row["t"].partition(",")[2])))
        with Image.open(place / one["path"]) as image:
            assert thumbnail.size == image.size  # small images, that no thumbnail needs to shrink
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>sea</b>" not in text
    assert "wrote" in result.stderr


def test_a_page_beside_a_file_and_of_moved_images(place: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "images", 2)
    (tmp_path / "labels.txt").write_text("cat\n", encoding="utf-8")
    result = cloob_here(
        "classify", "images", "-l", "labels.txt", "--model", place / "model", "--sort-into", "sorted",
        "--sort-mode", "move", "-o", "rows.jsonl", "--html", "report.html", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["path"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        "images/0000.png", "images/0001.png",
    ]  # fmt: skip
    for row in rows_of(tmp_path / "report.html"):
        assert (tmp_path / row["p"]).is_file()  # where the image is now
        assert (tmp_path / row["h"]).is_file()


def test_pages_that_cannot_be_written_are_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>somebody's own")
    labels = place / "labels.txt"
    for page, message in [
        ("page.html", "did not write it"),
        ("report.pdf", "unknown file type"),
        (str(tmp_path), "unknown file type"),
    ]:
        result = cloob_here("classify", place / "images", "-l", labels, "--html", page, *OPTIONS, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "--html" in result.stderr or message == "unknown file type"
    again = [place / "images", "-l", labels, "--model", place / "model"]
    assert cloob_here("classify", *again, "--html", "page.html", "--force", cwd=tmp_path).returncode == 3
    # Its own page is replaced without being asked.
    assert cloob_here("classify", *again, "--html", "page.html", cwd=tmp_path).returncode == 3


def test_a_page_is_whole_where_nobody_reads_the_rows(place: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "classify", str(place / "images"), "-l", str(place / "labels.txt"), "--model",
               str(place / "model"), "--batch-size", "1", "--html", str(tmp_path / "report.html")]  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, env=environment(), check=False, timeout=120
        )
    finally:
        os.close(write)
    assert done.returncode in (1, 3, 141), done.stderr
    assert len(rows_of(tmp_path / "report.html")) == 5


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes are POSIX's")
def test_exported_labels_are_a_data_set(tmp_path: Path) -> None:
    """The file that a page exports, as its format is documented: whole paths as text, and labels."""
    images = save_images(tmp_path / "images", 2)
    odd = tmp_path / "images" / os.fsdecode(b"caf\xe9.png")
    images[1].rename(odd)
    (tmp_path / "elsewhere").mkdir()
    table = tmp_path / "elsewhere" / "labels.csv"
    table.write_text(f'path,label\n{path_text(odd)},"a, new label"\n{path_text(images[0])},cat\n', encoding="utf-8")
    opened = open_classification_set(table)
    assert opened.classes == ["a, new label", "cat"]
    assert [source.path for source in opened.sources] == [odd, images[0]]
    assert opened.labels == [0, 1]
    assert opened.image(0).size == opened.image(1).size


def test_eval_scores_what_was_confirmed_on_a_page(place: Path, tmp_path: Path) -> None:
    images = sorted((place / "images").glob("00*.png"))
    lines = "".join(f"{path},{'cat' if number else 'dog'}\n" for number, path in enumerate(images))
    (tmp_path / "labels.csv").write_text(f"path,label\n{lines}", encoding="utf-8")
    result = cloob_here(
        "eval",
        place / "model",
        "labels.csv",
        "--json",
        "--bootstrap",
        0,
        "--no-cache",
        cwd=tmp_path,
        CLOOB_HOME=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    [record] = json.loads(result.stdout)
    assert record["images"] == 3
    assert record["classes"] == 2
