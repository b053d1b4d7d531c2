"""`cloob dedupe`, and the pages of `dedupe` and `search`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from browser import browser, needs_browser
from command_line import cloob_here
from gallery_rows import rows_of
from PIL import Image

from cloob_cli import console

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "pictures"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawings, a copy of one in a folder below, a small JPEG of another; with their index."""
    place = tmp_path_factory.mktemp("dedupe")
    folder = place / "pictures"
    (folder / "below").mkdir(parents=True)
    for name in ("cat.png", "dog.png", "house.png"):
        shutil.copy(PICTURES / name, folder / name)
    shutil.copy(PICTURES / "cat.png", folder / "below" / "<img src=x onerror=alert(1)>.png")
    with Image.open(PICTURES / "dog.png") as dog:
        dog.convert("RGB").resize((64, 64)).save(folder / "dog-small.jpg")
    result = cloob_here("dedupe", "pictures", "--json", cwd=place)
    assert result.returncode == 0, result.stderr
    (place / "first.jsonl").write_text(result.stdout, "utf-8")
    return place


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".cloob" not in path.parts)
    return {str(path): path.read_bytes() for path in files}


def test_copies_by_bytes_and_by_looks(made: Path) -> None:
    cats, dogs = (json.loads(line) for line in (made / "first.jsonl").read_text("utf-8").splitlines())
    assert (cats["kind"], dogs["kind"]) == ("exact", "near")
    copy = "pictures/below/<img src=x onerror=alert(1)>.png"
    assert [(one["path"], one["match"]) for one in cats["images"]] == [
        ("pictures/cat.png", "best"), (copy, "exact"),
    ]  # fmt: skip
    assert [(one["path"], one["match"]) for one in dogs["images"]] == [
        ("pictures/dog.png", "best"), ("pictures/dog-small.jpg", "near"),
    ]  # fmt: skip
    for one in [*cats["images"], *dogs["images"]]:
        with Image.open(made / one["path"]) as image:
            assert (one["width"], one["height"]) == image.size
        assert one["size"] == os.path.getsize(made / one["path"])


def test_a_table_in_a_pipe_and_nothing_is_touched(made: Path) -> None:
    before = contents(made / "pictures")
    result = cloob_here("dedupe", "pictures", "--no-update", "--max-bits", 0, "--min-cosine", 1, cwd=made)
    assert result.returncode == 0, result.stderr
    head, *rows = result.stdout.splitlines()
    assert head.split("\t") == ["group", "path", "match", "pixels", "bytes", "cosine", "bits"]
    assert [row.split("\t")[:3] for row in rows] == [
        ["1", "pictures/cat.png", "best"],
        ["1", "pictures/below/<img src=x onerror=alert(1)>.png", "exact"],
    ]
    assert "groups: 1, images besides the best copies: 1" in result.stderr
    assert contents(made / "pictures") == before


def test_identical_needs_no_index_and_what_cannot_be_read_is_skipped(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "pictures", tmp_path / "pictures", ignore=shutil.ignore_patterns(".cloob"))
    (tmp_path / "pictures" / "gone.png").symlink_to("nowhere.png")
    result = cloob_here("dedupe", "pictures", "--identical", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    [group] = result.stdout.splitlines()
    assert len(json.loads(group)["images"]) == 2
    assert "1 links that lead nowhere" in result.stderr
    assert not (tmp_path / "pictures" / ".cloob").exists()
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no image")
    result = cloob_here("dedupe", "pictures", "--json", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert result.stdout == (made / "first.jsonl").read_text("utf-8")
    assert "broken.png" in result.stderr


def test_wrong_usage_is_one_line(made: Path, tmp_path: Path) -> None:
    for arguments in (
        ["nowhere"],
        ["pictures/cat.png"],
        ["pictures", "--identical", "--rebuild"],
        ["pictures", "--html", "page.txt"],
        [str(tmp_path), "--no-update"],
    ):
        result = cloob_here("dedupe", *arguments, cwd=made)
        assert result.returncode == 2, (arguments, result.stderr)
        assert result.stderr.startswith("error: ")
        assert result.stdout == ""


def test_the_page_has_a_heading_for_each_group(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = cloob_here("dedupe", "pictures", "--no-update", "--json", "--html", page, cwd=made)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (made / "first.jsonl").read_text("utf-8")
    images = [one for line in result.stdout.splitlines() for one in json.loads(line)["images"]]
    rows = rows_of(page)
    assert [row["p"] for row in rows] == [one["path"] for one in images]
    assert [row["s"] for row in rows] == ["1: 2 images"] * 2 + ["2: 2 images"] * 2
    assert [row["v"][1] for row in rows] == [one["bits"] for one in images]
    assert all(row["t"].startswith("data:image/") for row in rows)
    assert "<img src=x" not in page.read_text("utf-8")


def test_the_page_of_a_search_has_its_results(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["search", "pictures", "a cat", "--minus", "<b>dog</b>:0.5", "--top", 3, "--no-update", "--json"]
    result = cloob_here(*arguments, "--html", page, cwd=made)
    assert result.returncode == 0, result.stderr
    hits = [json.loads(line) for line in result.stdout.splitlines()]
    rows = rows_of(page)
    assert [(row["p"], row["v"][0]) for row in rows] == [(hit["path"], round(hit["score"], 6)) for hit in hits]
    text = page.read_text("utf-8")
    assert "&lt;b&gt;dog&lt;/b&gt;" in text
    assert "<b>dog" not in text
    again = cloob_here(*arguments, "--html", made / "first.jsonl", cwd=made)
    assert again.returncode == 2


def test_pages_are_whole_where_nobody_reads_the_results(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*arguments: object, **options: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(console, "table", closed)
    for name, arguments in (("dedupe", ["dedupe", "pictures"]), ("search", ["search", "pictures", "a cat"])):
        page = tmp_path / f"{name}.html"
        result = cloob_here(*arguments, "--no-update", "--html", page, cwd=made)
        assert result.returncode == 0, result.stderr
        assert len(rows_of(page)) >= 4


@pytest.mark.skipif(os.name != "posix", reason="names that Windows does not allow")
@needs_browser
def test_hostile_names_and_queries_do_nothing_in_a_browser(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<svg onload=alert(1)>"
    folder.mkdir()
    for name in ("'\"><img src=x onerror=alert(2)>.png", "{{ 7 * 7 }}\u2028.png"):
        shutil.copy(PICTURES / "cat.png", folder / name)
    query = "<script>alert(3)</script>"
    with browser(tmp_path / "profile") as chromium:
        for command, facts in (
            (["dedupe", folder.name, "--identical"], ["1", "2"]),
            (["search", folder.name, query], [folder.name, query]),
        ):
            page = tmp_path / f"{command[0]}.html"
            result = cloob_here(*command, "--json", "--html", page, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
            lines = [json.loads(line) for line in result.stdout.splitlines()]
            images = [image for line in lines for image in line.get("images", [line])]
            assert len(images) == 2
            chromium.open(page)
            paths = chromium.wait("[...document.querySelectorAll('.card .path')].map(e => e.textContent)")
            assert paths == [Path(image["path"]).name for image in images]
            assert chromium.run("document.querySelector('h1').textContent") == f"{command[0]} {folder.name}"
            assert chromium.run("[...document.querySelectorAll('dd')].map(e => e.textContent)") == facts
            headings = chromium.run("[...document.querySelectorAll('.heading')].map(e => e.textContent)")
            assert headings == (["1: 2 images (2)"] if command[0] == "dedupe" else [])
            assert chromium.run("document.querySelectorAll('svg, iframe, [onerror], [onload]').length") == 0
            # Filter and order, as far as pages without labels have them.
            chromium.fill("#find", "7 * 7")
            assert chromium.wait("document.getElementById('count').textContent === '1 of 2'")
        for event in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Log.entryAdded"):
            assert not chromium.happened(event)
