"""`cloob search` over a folder with an index of its own, and over embeddings files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import cloob_here
from margins import close
from PIL import Image
from tiny_model import save_hostile_images, save_images, save_tiny_model

import cloob_cli
from cloob_cli.commands import classify_results
from cloob_cli.commands import search as search_command
from cloob_cli.inference.rows import Choice, Classified

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "pictures"
NAMES = ["cat.png", "dog.png", "house.png", "car.png", "sailboat.png", "key.png"]
UNIT_ROWS = "sums of some hundred products of elements below 1 in float32: 16 EPS"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with an index by the bundled model, and a tiny model."""
    place = tmp_path_factory.mktemp("search")
    (place / "pictures").mkdir()
    for name in NAMES:
        shutil.copy(PICTURES / name, place / "pictures" / name)
        os.utime(place / "pictures" / name, (1e9, 1e9))
    assert cloob_here("search", "pictures", "a cat", cwd=place).returncode == 0
    save_tiny_model(place / "models" / "one")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))  # which keeps times


def search(place: Path, *arguments: object, code: int = 0, **env: str) -> list[tuple[str, float]]:
    result = cloob_here("search", *arguments, "--json", cwd=place, **env)
    assert result.returncode == code, result.stderr
    hits = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(list(hit) == ["path", "score"] for hit in hits)
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    return [(hit["path"], hit["score"]) for hit in hits]


@pytest.mark.numeric
def test_words_images_and_weights(place: Path) -> None:
    m = cloob_cli.load("cloob-xs-pictograms", device="cpu")
    images = [m.encode_image(m.preprocess(Image.open(place / "pictures" / name))[None])[0] for name in NAMES]
    cat, snow, dog = m.encode_text(m.tokenize(["a cat", "snow", "a dog"]))

    def check(query: torch.Tensor, *arguments: object) -> None:
        query = torch.nn.functional.normalize(query, dim=0)
        expected = {f"pictures/{name}": float(image @ query) for name, image in zip(NAMES, images, strict=True)}
        found = search(place, "pictures", *arguments)
        order = sorted(expected, key=lambda name: -expected[name])
        assert [path for path, _ in found] == order
        close([score for _, score in found], [expected[name] for name in order], UNIT_ROWS, atol=2e-6)

    check(cat, "a cat")
    check(cat + 0.5 * snow - 2 * dog, "a cat", "--also", "snow:0.5", "--minus", "a dog:2")
    check(cat + snow, "a cat", "snow")
    check(images[2] - images[0], "--image", "pictures/house.png", "--minus", "pictures/cat.png")
    assert search(place, "pictures", "a cat", "--top", 1)[0][0] == "pictures/cat.png"
    best, second = search(place, "pictures", "a cat", "--top", 2)
    assert search(place, "pictures", "a cat", "--min-score", (best[1] + second[1]) / 2) == [best]


def test_no_number_of_a_table_is_a_negative_zero(capsys: pytest.CaptureFixture[str]) -> None:
    search_command._print([(Path("a.png"), -1e-6)], False, False, False)
    assert capsys.readouterr().out.splitlines() == ["path\tscore", "a.png\t0.0000"]
    row = Classified("a.png", [Choice("cat", 1.0, -1e-6)])
    assert classify_results._cells(row, 0) == ["a.png", "cat", "1.0000", "0.0000"]


def test_the_index_follows_the_folder_and_moves_with_it(place: Path) -> None:
    index = place / "pictures" / ".cloob"
    assert sorted(path.name for path in index.iterdir()) == ["emb.npy", "emb.parquet"]
    assert pq.read_table(index / "emb.parquet").column("path").to_pylist() == sorted(NAMES)
    (place / "pictures").rename(place / "moved")
    result = cloob_here("search", "moved", "a cat", cwd=place)
    assert "moved/.cloob/emb.npy is up to date: 6 images" in result.stderr
    assert [line.split("\t")[0] for line in result.stdout.splitlines()[:2]] == ["path", "moved/cat.png"]

    (place / "moved" / "cat.png").unlink()
    shutil.copy(PICTURES / "butterfly.png", place / "moved")
    assert search(place, "moved", "a cat", "--no-update")[0][0] == "moved/cat.png"
    result = cloob_here("search", place / "moved", "a butterfly", cwd=place)
    assert "embedded 1 image in " in result.stderr
    paths = [line.split("\t")[0] for line in result.stdout.splitlines()[1:]]
    expected = {*NAMES, "butterfly.png"} - {"cat.png"}
    assert {*paths} == {str(place / "moved" / name) for name in expected}


def test_paths_for_pipes(place: Path) -> None:
    (place / "pictures" / "dog.png").rename(place / "pictures" / "a\nb.png")
    result = cloob_here("search", "pictures", "a cat", "--print0", "--top", 3, cwd=place)
    listed = result.stdout.split("\0")
    assert listed[0] == "pictures/cat.png"
    assert listed[-1] == ""
    assert "pictures/a\nb.png" in listed
    result = cloob_here("search", "pictures", "a cat", "-q", "--top", 1, cwd=place)
    assert (result.stdout, result.stderr) == ("pictures/cat.png\n", "")


def test_an_embeddings_file_and_its_model(place: Path) -> None:
    options = ["--dtype", "float16", "-q"]
    assert cloob_here("embed", "pictures", "-o", "emb.npy", "-m", "models/one", *options, cwd=place).returncode == 0
    refused = cloob_here("search", "emb.npy", "a cat", cwd=place)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-2].startswith("error: emb.npy was made with the model tiny")
    assert refused.stderr.splitlines()[-1] == "hint: name its model with --model"
    assert len(search(place, "emb.npy", "a cat", "-m", "models/one", "--top", 4)) == 4
    assert cloob_here("embed", "pictures", "-o", "emb.npy", "--rebuild", "-q", cwd=place).returncode == 0
    assert search(place, "emb.npy", "a cat")[0][0] == "pictures/cat.png"


def test_another_model_is_refused_until_the_index_is_made_anew(place: Path) -> None:
    refused = cloob_here("search", "pictures", "a cat", "-m", "models/one", cwd=place)
    assert refused.returncode == 2
    assert "--rebuild" in refused.stderr.splitlines()[-1]
    assert len(search(place, "pictures", "a cat", "-m", "models/one", "--rebuild")) == 6
    installed = place / "home" / "models" / "tiny"
    shutil.copytree(place / "models" / "one", installed)
    assert len(search(place, "pictures", "a cat", CLOOB_HOME=str(place / "home"))) == 6  # its model is found by name


def test_an_index_keeps_its_way_of_decoding(place: Path) -> None:
    def decoding() -> bytes:
        return pq.read_schema(place / "pictures" / ".cloob" / "emb.parquet").metadata[b"decoding"]

    assert decoding() == b"scaled"
    refused = cloob_here("search", "pictures", "a cat", "--exact", cwd=place)
    assert refused.returncode == 2
    assert "was made with scaled decoding, not with exact decoding" in refused.stderr
    search(place, "pictures", "a cat", "--exact", "--rebuild")
    assert decoding() == b"exact"
    shutil.copy(PICTURES / "butterfly.png", place / "pictures")
    assert len(search(place, "pictures", "a cat", "--image", "pictures/key.png")) == 7
    assert decoding() == b"exact"


@pytest.mark.parametrize("had_index", [False, True])
def test_a_folder_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch, had_index: bool) -> None:
    if not had_index:
        shutil.rmtree(place / "pictures" / ".cloob")
    before = sorted(path for path in (place / "pictures").rglob("*"))
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and not ("pictures" in str(path) and mode & os.W_OK)
    )
    home = place / "home"
    result = cloob_here("search", "pictures", "a cat", cwd=place, CLOOB_HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert ("embedded 6 images" in result.stderr) == (not had_index)
    assert result.stdout.splitlines()[1].split("\t")[0] == "pictures/cat.png"
    assert len(list(home.glob("indexes/*/emb.npy"))) == 1
    assert sorted(path for path in (place / "pictures").rglob("*")) == before
    assert search(place, "pictures", "a cat", CLOOB_HOME=str(home))[0][0] == "pictures/cat.png"


def test_what_cannot_be_read_is_named_and_skipped(place: Path) -> None:
    hostile = save_hostile_images(place / "pictures" / "hostile")
    result = cloob_here("search", "pictures", "a cat", "--top", 1, cwd=place)
    assert result.returncode == 3
    assert result.stdout.splitlines()[1].split("\t")[0] == "pictures/cat.png"
    listed = (place / "pictures" / ".cloob" / "emb.failures.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["path"]).name for line in listed} == set(hostile)


def test_wrong_input_is_one_line_and_a_hint(place: Path) -> None:
    save_images(place / "fresh", 1)
    np.save(place / "alone.npy", np.zeros((2, 3), np.float32))
    (place / "text.txt").write_text("a")
    damaged = Path(shutil.copytree(place / "pictures", place / "damaged"))
    whole = (damaged / ".cloob" / "emb.npy").read_bytes()
    (damaged / ".cloob" / "emb.npy").write_bytes(whole[: len(whole) // 2])
    newer = Path(shutil.copytree(place / "pictures", place / "newer"))
    table = pq.read_table(newer / ".cloob" / "emb.parquet")
    changed = {**table.schema.metadata, b"version": b"99.0"}
    pq.write_table(table.replace_schema_metadata(changed), newer / ".cloob" / "emb.parquet")
    cases = [
        (["pictures"], "nothing to search for"),
        (["pictures", "--minus", "a cat"], "nothing to search for"),
        (["pictures", "a cat", "--minus", "a cat"], "cancel each other out"),
        (["pictures", "--image", "none.png"], "no image at none.png"),
        (["pictures", "--image", "text.txt"], "text.txt: not an image"),
        (["nowhere", "a cat"], "no folder or file at nowhere"),
        (["text.txt", "a cat"], "neither a folder nor a .npy file"),
        (["alone.npy", "a cat"], "no embeddings at alone.parquet"),
        (["fresh", "a cat", "--no-update"], "fresh has no index yet"),
        (["damaged", "a cat"], "damaged/.cloob/emb.npy is cut short: it has 2 of 6 rows"),
        (["damaged", "a cat", "--no-update"], "damaged/.cloob/emb.npy is cut short: it has 2 of 6 rows"),
        (["newer", "a cat"], "made with cloob 99.0, not with cloob"),
        (["pictures", "a cat", "--json", "--print0"], "exclude each other"),
    ]
    for arguments, message in cases:
        result = cloob_here("search", *arguments, cwd=place)
        assert (result.returncode, result.stdout) == (2, ""), (arguments, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, result.stderr
        assert message in errors[0]
    assert search(place, "damaged", "a cat", "--rebuild")[0][0] == "damaged/cat.png"
    assert search(place, "newer", "a cat", "--rebuild")[0][0] == "newer/cat.png"


def test_many_rows_are_searched_with_an_index(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows all are candidates, so that the results are those of comparing all."""
    pytest.importorskip("lancedb")
    from cloob_cli.commands import search_rows

    monkeypatch.setattr(search_rows, "_MANY", 5)
    monkeypatch.setattr(search_rows, "_SAMPLES", 6)
    index = place / "pictures" / ".cloob" / ".emb.npy.cloob-search"
    exact = cloob_here("search", "pictures", "a cat", "--compare-all", cwd=place)
    as_it_is = cloob_here("search", "pictures", "a cat", "--no-update", cwd=place)
    assert not index.exists()
    first = cloob_here("search", "pictures", "a cat", cwd=place)
    second = cloob_here("search", "pictures", "a cat", cwd=place)
    assert "building a search index of 6 rows, once, in up to some 1 minute;" in first.stderr
    steps = [line for line in first.stderr.splitlines() if line.startswith("step ")]
    assert [line[:11] for line in steps] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert "building" not in second.stderr
    for result in (first, second):
        assert "finds 100.0% of the 10 nearest" in result.stderr, result.stderr
    assert exact.stdout == as_it_is.stdout == first.stdout == second.stdout

    shutil.copy(PICTURES / "butterfly.png", place / "pictures")
    (place / "pictures" / "cat.png").unlink()
    changed = cloob_here("search", "pictures", "a butterfly", cwd=place)
    assert "building a search index of 6 rows, once" in changed.stderr  # a third of six rows is many
    assert changed.stdout.splitlines()[1].split("\t")[0] == "pictures/butterfly.png"

    (index / "rows.lance" / "_versions").rename(index / "gone")
    damaged = cloob_here("search", "pictures", "a butterfly", cwd=place)
    assert damaged.returncode == 0
    assert "all rows are compared: the search index cannot be used" in damaged.stderr
    assert damaged.stdout == changed.stdout


def test_without_the_extra_one_notice_names_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloob_cli.commands import search_rows

    few = cloob_here("search", "pictures", "a cat", cwd=place)
    assert "cloob[search]" not in few.stderr
    monkeypatch.setattr(search_rows, "_MANY", 5)
    monkeypatch.setattr("cloob_cli.inference.lance_tables.has_lancedb", lambda: False)
    result = cloob_here("search", "pictures", "a cat", cwd=place)
    assert result.stdout == few.stdout
    assert result.stderr.count("all 6 rows are compared; pip install 'cloob[search]' makes that faster") == 1
