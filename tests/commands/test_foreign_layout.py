"""Folders that clip-retrieval itself wrote: several parts, without a word about the model that made them."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import cloob_here
from margins import close
from tiny_model import save_images, save_tiny_model

from cloob_cli.commands import nearest_rows

COUNT = 13


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, and their embeddings as `cloob embed` writes them."""
    place = tmp_path_factory.mktemp("foreign")
    save_tiny_model(place / "model")
    save_images(place / "images", COUNT)
    assert cloob_here("embed", "images", "-o", "emb.npy", "-m", "model", cwd=place).returncode == 0
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


def write_parts(place: Path, count: int, dtypes: tuple[type, ...] = (np.float16,)) -> Path:
    """Write the folder that clip-retrieval 2.45.0 makes of the images, by its clip_inference/runner.py and writer.py.

    Every count-th image is of one partition, names are as long as the number of partitions asks for, and a partition
    without images has no files.
    """
    rows, names = np.load(place / "emb.npy"), pq.read_table(place / "emb.parquet").column("path").to_pylist()
    folder = place / "foreign"
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        digits = str(number).zfill(int(math.log10(count)) + 1)
        own = rows[number::count].astype(dtypes[number % len(dtypes)])
        if len(own):
            np.save(folder / "img_emb" / f"img_emb_{digits}.npy", own)
            table = pa.table({"image_path": names[number::count]})
            pq.write_table(table, folder / "metadata" / f"metadata_{digits}.parquet")
    return folder


def search(place: Path, source: str) -> tuple[dict[str, float], str]:
    result = cloob_here("search", source, "a cat", "-m", "model", "--json", "--top", 100, cwd=place)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return {row["path"]: row["score"] for row in rows}, result.stderr


CLASSIFY = ["classify", "images", "--label", "cat", "-m", "model", "--unknown", "x", "--threshold", 1, "--json"]


# As many digits as 1, 10 and 100 partitions ask for; 20 and 100 are more than there are images.
@pytest.mark.numeric
@pytest.mark.parametrize("count", [1, 12, 100])
def test_search_and_reference_read_all_parts(place: Path, count: int) -> None:
    write_parts(place, count, (np.float32,))
    expected, _ = search(place, "emb.npy")
    found, said = search(place, "foreign")
    assert sorted(found) == sorted(expected)
    assert len(found) == COUNT
    reason = "float32 sums in another order, of 16 products or 13 patterns, of numbers up to 1: 16 EPS"
    close([found[name] for name in expected], list(expected.values()), reason, atol=2e-6)
    assert said.count("does not say which model made it; if it was not model, ") == 1
    by_ours, by_theirs = (cloob_here(*CLASSIFY, "--reference", source, cwd=place) for source in ("emb.npy", "foreign"))
    ours, theirs = (
        [json.loads(line)["rejection"] for line in result.stdout.splitlines()] for result in (by_ours, by_theirs)
    )
    assert len(ours) == COUNT
    close(theirs, ours, reason, atol=2e-6)
    assert by_theirs.stderr.count("does not say which model made it; if it was not tiny, ") == 1
    assert "does not say" not in by_ours.stderr


@pytest.mark.numeric
def test_parts_of_mixed_dtypes_empty_parts_and_other_types_of_text(place: Path) -> None:
    folder = write_parts(place, 12, (np.float16, np.float32))
    np.save(folder / "img_emb" / "img_emb_12.npy", np.zeros((0, 7), np.float32))
    metadata(folder, 12, image_path=pa.array([], pa.null()))
    pq.write_table(
        pa.table({"image_path": pa.array(["images/0003.png"]).dictionary_encode()}),
        folder / "metadata" / "metadata_03.parquet",
    )
    (folder / "img_emb" / "img_emb_7.npy.tmp").touch()
    found, _ = search(place, "foreign")
    expected, _ = search(place, "emb.npy")
    assert sorted(found) == sorted(expected)
    reason = "components of a unit vector rounded to 11 bits: 2^-11 of its length, and twice that as a margin"
    close([found[name] for name in expected], list(expected.values()), reason, atol=2**-10)


def test_an_index_of_one_part_is_not_that_of_another(place: Path) -> None:
    """An approximate index is known by the first part's file, which here has no rows."""
    folder = write_parts(place, 1)
    for name in ("img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"):
        (folder / name).rename(folder / name.replace("0", "1"))
    np.save(folder / "img_emb" / "img_emb_0.npy", np.zeros((0, 16), np.float32))
    metadata(folder, 0, image_path=pa.array([], pa.string()))
    with mock.patch.object(nearest_rows, "_MANY", 0), mock.patch.object(nearest_rows, "_index") as index:
        assert len(search(place, "foreign")[0]) == COUNT
    assert not index.called


def test_a_file_that_is_named_is_that_part(place: Path) -> None:
    write_parts(place, 12)
    for name in ("img_emb/img_emb_00.npy", "metadata/metadata_00.parquet"):
        assert sorted(search(place, f"foreign/{name}")[0]) == ["images/0000.png", "images/0012.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_part_may_be_a_link_that_leads_to_a_file(place: Path) -> None:
    part = write_parts(place, 3) / "img_emb" / "img_emb_1.npy"
    part.rename(place / "elsewhere.npy")
    part.symlink_to(place / "elsewhere.npy")
    assert len(search(place, "foreign")[0]) == COUNT
    for target in (place / "nowhere", part):
        part.unlink()
        part.symlink_to(target)
        result = cloob_here("search", "foreign", "a cat", "-m", "model", cwd=place)
        assert result.returncode == 2
        error, hint = result.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert "foreign/img_emb/img_emb_1.npy" in error
        assert hint.startswith("hint: each img_emb/img_emb_N.npy needs")


def test_equal_rows_stand_in_numeric_order(place: Path) -> None:
    folder = place / "foreign"
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number in (10, 9, 100, 2):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", np.eye(16, dtype=np.float16)[:1])
        pq.write_table(pa.table({"image_path": [f"{number}"]}), folder / "metadata" / f"metadata_{number}.parquet")
    assert list(search(place, "foreign")[0]) == ["2", "9", "10", "100"]


def metadata(folder: Path, number: int, **columns: object) -> None:
    pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")


def told(folder: Path, number: int, weights: str) -> None:
    path = folder / "metadata" / f"metadata_{number}.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"weights_sha256": weights}), path)


def rows(folder: Path, number: int, count: int, width: int) -> None:
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", np.zeros((count, width), np.float16))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no metadata": (
        lambda folder: (folder / "metadata" / "metadata_1.parquet").unlink(),
        "foreign/img_emb/img_emb_1.npy has no metadata: there is no foreign/metadata/metadata_1.parquet",
    ),
    "no metadata at all": (lambda folder: shutil.rmtree(folder / "metadata"), "img_emb_0.npy has no metadata"),
    "no embeddings": (
        lambda folder: (folder / "img_emb" / "img_emb_2.npy").unlink(),
        "foreign/metadata/metadata_2.parquet has no embeddings in foreign/img_emb",
    ),
    "no parts": (
        lambda folder: [path.unlink() for path in folder.rglob("*.*")],
        "foreign/img_emb holds no img_emb_N.npy",
    ),
    "one number twice": (
        lambda folder: shutil.copy(folder / "img_emb" / "img_emb_1.npy", folder / "img_emb" / "img_emb_01.npy"),
        "foreign/img_emb/img_emb_1.npy and img_emb_01.npy have the same number",
    ),
    "more rows": (
        lambda folder: rows(folder, 1, 9, 16),
        "foreign/img_emb/img_emb_1.npy and metadata_1.parquet do not belong together: (9, 16) and 4 rows",
    ),
    "another width": (
        lambda folder: rows(folder, 1, 4, 8),
        "foreign/img_emb/img_emb_1.npy has 8 numbers a row, and the parts before it have 16",
    ),
    "cut short": (
        lambda folder: cut(folder / "img_emb" / "img_emb_1.npy"),
        "foreign/img_emb/img_emb_1.npy is cut short: it has 3 of 4 rows",
    ),
    "metadata cut short": (
        lambda folder: cut(folder / "metadata" / "metadata_1.parquet"),
        "foreign/img_emb/img_emb_1.npy cannot be read with its index metadata_1.parquet",
    ),
    "no column of paths": (
        lambda folder: metadata(folder, 1, key=["0"] * 4),
        "foreign/img_emb/img_emb_1.npy cannot be read with its index metadata_1.parquet",
    ),
    "numbers as paths": (
        lambda folder: metadata(folder, 1, image_path=[0] * 4),
        "foreign/metadata/metadata_1.parquet has int64 in its column image_path, no paths",
    ),
    "paths that are missing": (
        lambda folder: metadata(folder, 1, image_path=["0", None, None, "1"]),
        "foreign/metadata/metadata_1.parquet lacks 2 of its paths",
    ),
    "parts of two models": (
        lambda folder: [told(folder, 0, "a"), told(folder, 2, "b")],
        "foreign/img_emb/img_emb_2.npy was made with another model than the parts before it",
    ),
    "a folder": (
        lambda folder: [
            (folder / "img_emb" / "img_emb_1.npy").unlink(),
            (folder / "img_emb" / "img_emb_1.npy").mkdir(),
        ],
        "foreign/img_emb/img_emb_1.npy is not a regular file",
    ),
    "no rows": (
        lambda folder: [
            (rows(folder, number, 0, 16), metadata(folder, number, image_path=pa.array([], pa.string())))
            for number in range(3)
        ],
        "foreign/img_emb holds no rows",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_wrong_with_a_part_is_one_line_that_names_the_file(place: Path, case: str) -> None:
    damage, message = FAULTS[case]
    damage(write_parts(place, 3))
    for command in (["search", "foreign", "a cat", "-m", "model"], [*CLASSIFY, "--reference", "foreign"]):
        result = cloob_here(*command, cwd=place)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        error, hint = result.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert message in error.replace("\\", "/")
        assert hint.startswith("hint: ")


def test_embeddings_of_another_width_than_the_models_are_refused(place: Path) -> None:
    folder = write_parts(place, 2)
    for number in range(2):
        path = folder / "img_emb" / f"img_emb_{number}.npy"
        np.save(path, np.zeros((len(np.load(path)), 24), np.float16))
    pq.write_table(pa.table({"path": ["a", "b"]}), place / "wide.parquet")
    np.save(place / "wide.npy", np.zeros((2, 24), np.float32))
    for source in ("foreign", "wide.npy"):
        for command in (["search", source, "a cat", "-m", "model"], [*CLASSIFY, "--reference", source]):
            result = cloob_here(*command, cwd=place)
            assert (result.returncode, result.stdout) == (2, ""), result.stderr
            error, hint = result.stderr.splitlines()[-2:]
            assert "have 24 numbers" in error
            assert error.endswith(" 16")
            assert "--model" in hint


def test_parts_that_say_so_are_of_the_model(place: Path) -> None:
    folder = write_parts(place, 2)
    weights = pq.read_schema(place / "emb.parquet").metadata[b"weights_sha256"].decode()
    told(folder, 0, weights)
    assert "does not say" in search(place, "foreign")[1]  # the other part
    told(folder, 1, weights)
    assert "does not say" not in search(place, "foreign")[1]
    for number in range(2):
        told(folder, number, "another")
    refused = cloob_here("search", "foreign", "a cat", "-m", "model", cwd=place)
    assert refused.returncode == 2
    assert "was made with the model" in refused.stderr
