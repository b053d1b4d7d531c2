"""A change of the data is noticed in every form of storage, and told; another place is no change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import image, write_folder, write_parquet, write_table, write_tar

from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.sources.data_fingerprint import Part, changes, digest, digest_of, from_json, short_names, to_json
from cloob_cli.recipe import DataSection


def write_tars(folder: Path) -> Path:
    for number in range(4):
        write_tar(folder / f"{number}.tar", range(5 * number, 5 * number + 5))
    return folder


def write_parquets(folder: Path) -> Path:
    for number in range(4):
        write_parquet(folder / f"{number}.parquet", range(5 * number, 5 * number + 5), row_group=2)
    return folder


def write_csv(folder: Path) -> Path:
    folder.mkdir()
    return write_table(folder / "t.csv", range(20), ",", "image", "caption").parent


FORMS: dict[str, Callable[[Path], Path]] = {
    "tars": write_tars,
    "parquet": write_parquets,
    "csv": write_csv,
    "folder": lambda folder: write_folder(folder, range(20)),
}


def parts_of(folder: Path) -> list[Part]:
    data = folder / "t.csv" if (folder / "t.csv").exists() else folder
    return open_pairs(DataSection(train=str(data))).parts()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_data_elsewhere_has_not_changed(form: str, tmp_path: Path) -> None:
    folder = FORMS[form](tmp_path / "data")
    before = parts_of(folder)
    assert sum(part.pairs for part in before) == 20
    shutil.copytree(folder, tmp_path / "mirror" / "copy")  # with times of its own
    now = parts_of(tmp_path / "mirror" / "copy")
    assert changes(before, now) == []
    assert digest_of(before) == digest_of(now)
    assert from_json(to_json(before)) == before


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_shards_that_are_gone_new_or_others_are_named(form: str, tmp_path: Path) -> None:
    folder = FORMS[form](tmp_path / "data")
    suffix, write = {"tars": (".tar", write_tar), "parquet": (".parquet", write_parquet)}[form]
    before = parts_of(folder)
    (folder / f"1{suffix}").unlink()
    assert changes(before, parts_of(folder)) == [f"1{suffix} (5 pairs) is gone"]
    write(folder / f"1{suffix}", range(5, 9))
    write(folder / f"4{suffix}", range(20, 22))
    assert changes(before, parts_of(folder)) == [
        f"1{suffix} had 5 pairs and has 4",
        f"4{suffix} (2 pairs) is new",
    ]
    (folder / f"4{suffix}").unlink()
    write(folder / f"1{suffix}", range(50, 55))
    assert changes(before, parts_of(folder)) == [f"1{suffix} has other contents"]


def test_an_image_that_is_gone_changes_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", range(20))
    before = parts_of(folder)
    (folder / "007.png").unlink()
    assert changes(before, parts_of(folder)) == ["data had 20 pairs and has 19"]


def test_another_caption_image_or_name_changes_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", range(20))
    before = parts_of(folder)
    text = (folder / "007.txt").read_text()
    (folder / "007.txt").write_text("another")
    assert changes(before, parts_of(folder)) == ["data has other contents"]
    (folder / "007.txt").write_text(text)
    assert changes(before, parts_of(folder)) == []
    image(7, (60, 60)).save(folder / "007.png")
    assert changes(before, parts_of(folder)) == ["data has other contents"]


def test_other_captions_in_a_parquet_file_are_noticed(tmp_path: Path) -> None:
    """Although the file is as long as before."""
    parts = []
    for word in ("cat", "dog"):
        table = pa.table({"image": [b"x" * 10] * 5, "caption": [f"a {word}"] * 5})
        pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
        from cloob_cli.data.sources.parquet import ParquetSource

        parts.append(ParquetSource([tmp_path / "t.parquet"], None, None).parts())
    assert parts[0][0].size == parts[1][0].size
    assert changes(*parts) == ["t.parquet has other contents"]


def test_another_order_is_a_change(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "data")
    orders = [[str(folder / f"{number}.tar") for number in numbers] for numbers in ([0, 1, 2, 3], [0, 2, 1, 3])]
    before, now = (open_pairs(DataSection(train=order)).parts() for order in orders)
    assert changes(before, now) == ["its files come in another order"]
    assert digest_of(before) != digest_of(now)


def test_renamed_files_with_the_same_contents_in_the_same_order_have_not_changed(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "data")
    before = parts_of(folder)
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"shard-{path.name}")
    assert changes(before, parts_of(folder)) == []


def test_digests_tell_where_one_piece_ends() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["a", b"b"]) == digest([b"a", "b"])
    assert len(digest([])) == 16


def test_short_names() -> None:
    assert short_names([Path("/a/b/0.tar"), Path("/a/c/0.tar")]) == ["b/0.tar", "c/0.tar"]
    assert short_names([Path("/a/b/0.tar")]) == ["0.tar"]
    assert short_names([Path("0.tar"), Path("1.tar")]) == ["0.tar", "1.tar"]
    assert short_names([Path("x/0.tar"), Path("/a/1.tar")]) == ["x/0.tar", "/a/1.tar"]
