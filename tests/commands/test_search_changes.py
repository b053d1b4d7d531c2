"""`cloob search` where images change, or go, between indexing and search; and with an index that is cut short."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import cloob_here
from gallery_rows import rows_of
from tiny_model import save_images, save_tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("changes")
    save_tiny_model(place / "model")
    for path in save_images(place / "images", 5):
        os.utime(path, (1e9, 1e9))
    search(place)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))  # which keeps times


def search(place: Path, *options: object, code: int = 0) -> dict[str, float]:
    """Search for the first image; the score of each image that is found, best first."""
    command = ["search", "images", "--image", "query.png", "-m", "model", "--json"]
    if not (place / "query.png").exists():
        shutil.copy(place / "images" / "0000.png", place / "query.png")
    result = cloob_here(*command, *options, cwd=place)
    assert result.returncode == code, result.stderr
    return {Path(hit["path"]).name: hit["score"] for hit in map(json.loads, result.stdout.splitlines())}


def test_an_image_that_changed_is_searched_as_it_was_until_the_index_is_updated(place: Path) -> None:
    before = search(place, "--no-update")
    assert next(iter(before)) == "0000.png"
    shutil.copy(place / "images" / "0000.png", place / "images" / "0003.png")  # as a file of another time and contents
    assert search(place, "--no-update") == before
    after = search(place)
    assert list(after)[:2] == ["0000.png", "0003.png"]
    assert after["0003.png"] == after["0000.png"]
    assert {name: after[name] for name in after if name != "0003.png"} == {
        name: before[name] for name in before if name != "0003.png"
    }


def test_images_that_are_gone_or_broken_have_no_thumbnail(place: Path) -> None:
    before = search(place, "--no-update")
    (place / "images" / "0000.png").unlink()
    (place / "images" / "0001.png").write_bytes(b"no image")
    assert search(place, "--no-update", "--html", "page.html") == before
    shown = {Path(row["p"]).name: row.get("t") for row in rows_of(place / "page.html")}
    assert list(shown) == list(before)
    assert {name for name, thumbnail in shown.items() if not thumbnail} == {"0000.png", "0001.png"}
    assert list(search(place, "--html", "page.html", code=3)) == [name for name in before if shown[name]]


def test_all_images_are_gone(place: Path) -> None:
    for path in (place / "images").glob("*.png"):
        path.unlink()
    assert len(search(place, "--no-update")) == 5
    assert search(place, code=2) == {}
    assert len(search(place, "--no-update")) == 5  # a disk that is not mounted costs no index


@pytest.mark.parametrize("name", ["emb.npy", "emb.parquet"])
def test_an_index_that_is_cut_short_is_refused_until_it_is_made_anew(place: Path, name: str) -> None:
    before = search(place, "--no-update")
    path = place / "images" / ".cloob" / name
    path.write_bytes(path.read_bytes()[:-40])
    for options in ([], ["--no-update"]):
        result = cloob_here("search", "images", "a cat", "-m", "model", *options, cwd=place)
        assert (result.returncode, result.stdout) == (2, "")
        error, hint = result.stderr.splitlines()[-2:]
        assert error.startswith("error: images/.cloob/emb.npy ")
        assert hint == "hint: start anew with --rebuild"
    assert search(place, "--rebuild") == before
