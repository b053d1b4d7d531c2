"""Every form of storage gives the same pairs, and whatever is wrong with one is said at once."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import captions_of, image, write_folder, write_parquet, write_table, write_tar

from cloob_cli.data.pairs import PairSource, expand_braces, open_pairs
from cloob_cli.data.sources.parquet import ParquetSource
from cloob_cli.errors import DataError
from cloob_cli.recipe import DataSection

COUNT = 23


def opened(where: Path | str | list[str], **keys: object) -> PairSource:
    return open_pairs(DataSection.model_validate({"train": where if isinstance(where, list) else str(where)} | keys))


def check(source: PairSource, numbers: range, *, all_captions: bool, exact: bool = True) -> None:
    assert len(source) == len(numbers)
    for index, number in enumerate(numbers):
        expected = captions_of(number)
        assert source.captions(index) == (expected if all_captions else expected[:1])
        difference = np.asarray(source.image(index), dtype=int) - np.asarray(image(number), dtype=int)
        assert np.abs(difference).max() <= (0 if exact else 20)  # JPEG changes pixels, not images
    assert len({source.name(index) for index in range(len(source))}) == len(numbers)


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet(tmp_path: Path, as_struct: bool) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", range(COUNT), as_struct=as_struct)
    source = opened(path)
    check(source, range(COUNT), all_captions=True)
    assert source.name(12) == f"{path}:12"


def test_parquet_folder_of_several_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(7), row_group=3)
    second = write_parquet(tmp_path / "deep" / "b.parquet", range(7, COUNT), row_group=5)
    source = opened(tmp_path)
    check(source, range(COUNT), all_captions=True)
    assert source.name(7) == f"{second}:0"


def test_parquet_with_paths_and_one_caption(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", range(3))
    table = pa.table({"img": [f"images/{n:03}.png" for n in range(3)], "Title": ["a", None, "c"]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = opened(tmp_path / "t.parquet")
    assert [source.captions(n) for n in range(3)] == [["a"], [], ["c"]]
    np.testing.assert_array_equal(np.asarray(source.image(2)), np.asarray(image(2)))


def test_parquet_keeps_bounded_memory(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pairs.parquet", range(40), row_group=4)
    source = ParquetSource([tmp_path / "pairs.parquet"], None, None, cache_bytes=15_000)  # a row group has 6,200
    assert source.blocks is not None
    blocks, in_window = source.blocks
    assert blocks.tolist() == [n // 4 for n in range(40)]
    assert in_window == 2
    check(source, range(40), all_captions=True)
    assert source._cached_bytes <= 15_000
    assert opened(tmp_path).blocks is None  # all of it fits the ordinary limit


def test_folder_with_texts(tmp_path: Path) -> None:
    check(opened(write_folder(tmp_path, range(COUNT))), range(COUNT), all_captions=True)


def test_the_index_of_a_searched_folder_is_no_pair(tmp_path: Path) -> None:
    write_folder(tmp_path / "pairs", range(3))
    (tmp_path / "pairs" / ".cloob").mkdir()
    pq.write_table(pa.table({"path": ["a.png"], "size": [1]}), tmp_path / "pairs" / ".cloob" / "emb.parquet")
    assert len(open_pairs(DataSection(train=str(tmp_path / "pairs")))) == 3


def test_folder_image_without_text_is_a_pair_to_skip(tmp_path: Path) -> None:
    write_folder(tmp_path, range(4))
    (tmp_path / "001.txt").unlink()
    (tmp_path / "002.txt").write_text("\n  \n")
    assert [len(opened(tmp_path).captions(n)) for n in range(4)] == [1, 0, 0, 1]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_folder_with_metadata(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, range(3))
    if name.endswith("csv"):
        (tmp_path / name).write_text('file_name,text\n000.png,"one, two"\n001.png,\n002.png,three\n')
    else:
        (tmp_path / name).write_text(
            '{"file_name": "000.png", "text": "one, two"}\n\n{"file_name": "001.png"}\n'
            '{"file_name": "002.png", "text": ["three"]}\n'
        )
    source = opened(tmp_path)
    assert [source.captions(n) for n in range(3)] == [["one, two"], [], ["three"]]
    np.testing.assert_array_equal(np.asarray(source.image(2)), np.asarray(image(2)))


@pytest.mark.parametrize(
    ("separator", "image", "caption"),
    [("\t", "filepath", "title"), (",", "image", "caption"), (";", "Path", "TEXT"), ("|", "file_name", "description")],
)
def test_table_separator_and_columns_are_found(tmp_path: Path, separator: str, image: str, caption: str) -> None:
    table = write_table(tmp_path / "pairs.csv", range(COUNT), separator, image, caption)
    check(opened(table), range(COUNT), all_captions=False)


def test_table_columns_by_name(tmp_path: Path) -> None:
    table = write_table(tmp_path / "pairs.tsv", range(5), "\t", "bild", "beschriftung")
    check(opened(table, image_key="bild", caption_key="beschriftung"), range(5), all_captions=False)
    with pytest.raises(DataError) as caught:
        opened(table, image_key="build", caption_key="beschriftung")
    assert caught.value.hint == "columns found: id, bild, beschriftung; did you mean 'bild'?"


def test_table_captions_are_text_even_where_they_look_like_numbers(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", range(2))
    (tmp_path / "t.csv").write_text('image,caption\np/000.png,007\np/001.png,"two\nlines, ""quoted"""\n')
    source = opened(tmp_path / "t.csv")
    assert [source.captions(n) for n in range(2)] == [["007"], ['two\nlines, "quoted"']]


def test_table_paths_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "work" / "images", range(2))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "t.csv").write_text("filepath,title\nimages/000.png,a\nimages/001.png,b\n")
    monkeypatch.chdir(tmp_path / "work")
    assert opened(tmp_path / "lists" / "t.csv").image(1).size == (20, 20)


@pytest.mark.parametrize("captions_in", ["txt", "caption"])
def test_webdataset(tmp_path: Path, captions_in: str) -> None:
    write_tar(tmp_path / "00000.tar", range(9), captions_in=captions_in)
    write_tar(tmp_path / "00001.tar", range(9, COUNT), captions_in=captions_in)
    source = opened(str(tmp_path / "{00000..00001}.tar"))
    check(source, range(COUNT), all_captions=False, exact=False)
    assert source.name(9) == str(tmp_path / "00001.tar") + "/000000009"


def test_webdataset_with_another_field(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", range(3), captions_in="alt")
    assert opened(tmp_path, caption_key="alt").captions(2) == captions_of(2)[:1]
    with pytest.raises(DataError, match="have no key 'caption'") as caught:
        opened(tmp_path)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("keys found: alt")


def test_webdataset_cut_off_in_the_middle_keeps_what_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", range(9))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = opened(path)
    assert 2 < len(source) < 6
    check(source, range(len(source)), all_captions=False, exact=False)


def test_the_output_folder_of_img2dataset(tmp_path: Path) -> None:
    """Beside every tar (or folder, with its output_format "files") lies a table of what was fetched, and statistics."""
    fetched = pa.table({"url": ["http://localhost/1"], "caption": ["a"], "key": ["000000001"], "status": ["success"]})
    write_tar(tmp_path / "wds" / "00000.tar", range(9))
    write_tar(tmp_path / "wds" / "00001.tar", range(9, COUNT))
    write_folder(tmp_path / "files" / "00000", range(9))
    write_folder(tmp_path / "files" / "00001", range(9, COUNT))
    for folder, exact in (("wds", False), ("files", True)):
        for shard in ("00000", "00001"):
            pq.write_table(fetched, tmp_path / folder / f"{shard}.parquet")
            (tmp_path / folder / f"{shard}_stats.json").write_text("{}")
        check(opened(tmp_path / folder), range(COUNT), all_captions=exact, exact=exact)
    write_parquet(tmp_path / "pq" / "00000.parquet", range(COUNT))  # with output_format "parquet" it is the data
    (tmp_path / "pq" / "00000_stats.json").write_text("{}")
    check(opened(tmp_path / "pq"), range(COUNT), all_captions=True)


def test_several_sources_are_joined(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", range(4))
    write_folder(tmp_path / "b", range(4, 9))
    check(opened([str(tmp_path / "a"), str(tmp_path / "b")]), range(9), all_captions=True)
    check(opened(str(tmp_path / "{a,b}")), range(9), all_captions=True)
    check(opened(str(tmp_path / "[ab]")), range(9), all_captions=True)


def test_sources_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "0.tar", range(5))
    write_folder(tmp_path / "f", range(5))
    write_parquet(tmp_path / "p" / "0.parquet", range(5))
    for name in "tfp":
        source = opened(tmp_path / name)
        sent = pickle.loads(pickle.dumps(source))
        assert sent.captions(3) == source.captions(3)
        np.testing.assert_array_equal(np.asarray(sent.image(3)), np.asarray(source.image(3)))


# --- what is wrong --------------------------------------------------------------------------------------------------


def error_of(where: Path | str, **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        opened(where, **keys)
    assert "\n" not in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}"


def test_nothing_there(tmp_path: Path) -> None:
    assert "no data at" in error_of(tmp_path / "missing")
    assert "nothing matches" in error_of(tmp_path / "*.tar")
    assert "it is empty" in error_of(tmp_path)
    (tmp_path / "notes.md").touch()
    assert "1 .md" in error_of(tmp_path)
    assert "unknown kind" in error_of(tmp_path / "notes.md")


def test_one_shard_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", range(3))
    assert "00001.tar" in error_of(tmp_path / "{00000..00002}.tar")


def test_other_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "klass": [1]}), tmp_path / "t.parquet")
    assert "columns found: image, klass; name it with data.caption_key" in error_of(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert "columns found: a, b; name it with data.image_key" in error_of(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.tar"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00 garbage \x00" * 20], ids=["empty", "garbage"])
def test_broken_files(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in error_of(tmp_path / name)


def test_a_table_with_only_a_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n")
    assert "no rows" in error_of(tmp_path / "t.csv")
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}), tmp_path / "t.pq")
    assert "no rows" in error_of(tmp_path / "t.pq")


def test_nothing_readable_fails_at_once(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", range(3), pair0=b"x", pair1=b"", pair2=b"y")
    assert f"none of the 3 pairs that were tried can be used; {path}:0: not an image" in error_of(path)
    (tmp_path / "t.csv").write_text("image,caption\nno/such.png,a\n")
    assert "no such file" in error_of(tmp_path / "t.csv")


def test_images_without_any_caption(tmp_path: Path) -> None:
    write_folder(tmp_path, range(3))
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert "none of the 3 images" in error_of(tmp_path)
    assert "NAME.txt" in error_of(tmp_path)


def test_a_tar_without_pairs(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", range(3))
    assert "3 .jpg, 3 .json, 3 .txt" in error_of(path, image_key="png")


def test_mixed_forms(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", range(2))
    write_tar(tmp_path / "t.tar", range(2))
    assert "(webdataset)" in error_of([str(tmp_path / "f"), str(tmp_path / "t.tar")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("x{a,b}{1..2}", ["xa1", "xa2", "xb1", "xb2"]),
        ("{..}{x}", ["{..}{x}"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected
