"""The work of `cloob embed --engine ray`, without Ray: what is read, in which order, and what is made of it."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import encoded
from pyarrow import fs
from tiny_model import RESNET, save_images, save_tiny_model

from cloob_cli.checkpoint.folder import open_model, weights_sha256
from cloob_cli.errors import CloobError, DataError, Failure, InputError, NothingFoundError, UsageError
from cloob_cli.inference.cluster import parts, places
from cloob_cli.inference.cluster.embedder import ImageEmbedder, Settings, read_parts
from cloob_cli.inference.cluster.parts import Part, find_parts
from cloob_cli.inference.cluster.places import place_of
from cloob_cli.inference.cluster.result_table import failures_of, write_table
from cloob_cli.inference.embed import embed_images
from cloob_cli.inference.encoding import prepare_for_inference


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), RESNET)
    return Settings(str(folder), weights_sha256(folder), "cpu", None, 4, None, exact=False, memory_budget=None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven images, one of them broken."""
    paths = save_images(tmp_path_factory.mktemp("images"), 11)
    paths[5].write_bytes(b"broken")
    return paths


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def run(sources: list[Path | str], settings: Settings, **options: object) -> list[pa.Table]:
    """The tables of one embedder, in batches that have nothing to do with the parts."""
    found = find_parts(sources, size=settings.batch_size, **options)  # type: ignore[arg-type]
    contents = pa.concat_tables(read_parts(part.to_json() for part in found.parts))
    embedder = ImageEmbedder(settings)
    return [embedder(contents.slice(start, 3)) for start in range(0, len(contents), 3)]


def names(found: parts.Found) -> list[str]:
    return [name for part in found.parts for name in part.names]


def test_folders_tars_and_parquet_files_have_the_rows_of_the_plain_run(
    tmp_path: Path, settings: Settings, images: list[Path]
) -> None:
    model = prepare_for_inference(open_model(Path(settings.folder), "cpu", None))
    plain = list(embed_images(model, images, batch_size=4))
    expected = np.concatenate([batch.embeddings.numpy() for batch in plain if batch.embeddings is not None])
    [failure] = [failure for batch in plain for failure in batch.failures]
    data = [path.read_bytes() for path in images]
    tar = write_tar(tmp_path / "a.tar", {f"{number:03}.png": one for number, one in enumerate(data)})
    column = [{"bytes": one, "path": None} for one in data]
    pq.write_table(pa.table({"image": column, "label": range(11)}), tmp_path / "a.parquet", row_group_size=3)
    readable = [number for number in range(11) if number != 5]
    for source, called in (
        (images[0].parent, [str(path) for path in images]),
        (tar, [f"{tar}/{number:03}.png" for number in range(11)]),
        (tmp_path / "a.parquet", [f"{tmp_path / 'a.parquet'}:{number}" for number in range(11)]),
    ):
        tables = run([source], settings)
        assert [Failure(called[5], failure.reason)] == [one for table in tables for one in failures_of(table)]
        output = tmp_path / "out.parquet"
        rows = write_table(output, tmp_path / "out.failures.jsonl", tables, {"model": "tiny"}, "float32")
        written = pq.read_table(output)
        assert rows == len(written) == 10
        assert written.column_names == ["path", "embedding"]
        assert written["path"].to_pylist() == [called[number] for number in readable]
        assert written.schema.field("embedding").type.list_size == 16
        # The same numbers through the same model, in passes of the same shape.
        assert np.array_equal(np.stack(written["embedding"].to_numpy()), expected)
        assert written.schema.metadata | {b"precision": b"float32", b"device": b"cpu", b"pass_size": b"4"} == (
            written.schema.metadata
        )
        assert (tmp_path / "out.failures.jsonl").read_text().count("\n") == 1


def test_a_lance_table_holds_what_the_parquet_file_does(settings: Settings, images: list[Path], tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    tables = run([images[0].parent], settings)
    for name in ("out.parquet", "out.lance"):
        assert write_table(tmp_path / name, tmp_path / f"{name}.jsonl", tables, {"model": "tiny"}, "float16") == 10
    expected, opened = pq.read_table(tmp_path / "out.parquet"), lancedb.connect(tmp_path).open_table("out")
    assert opened.to_arrow().equals(expected)
    assert opened.schema.metadata == expected.schema.metadata
    assert (tmp_path / "out.lance.jsonl").read_bytes() == (tmp_path / "out.parquet.jsonl").read_bytes()

    def interrupted() -> Iterator[pa.Table]:
        yield from tables
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(tmp_path / "out.lance", tmp_path / "out.lance.jsonl", interrupted(), {}, "float32")
    assert lancedb.connect(tmp_path).open_table("out").to_arrow().equals(expected)
    assert {path.name for path in tmp_path.iterdir()} == {
        name + end for name in ("out.parquet", "out.lance") for end in ("", ".jsonl")
    }


def test_a_folder_stands_for_its_images_or_its_tars_or_its_parquet_files(tmp_path: Path) -> None:
    for folder in ("images", "tars", "tables", "empty", "tars/.hidden"):
        (tmp_path / folder).mkdir()
    save_images(tmp_path / "images" / "b", 3)
    save_images(tmp_path / "images" / "a", 1)
    write_tar(tmp_path / "images" / "some.tar", {})
    for name in ("2.tar", "1.tar", ".hidden/3.tar"):
        write_tar(tmp_path / "tars" / name, {"1.png": encoded(1)})
    for folder in ("tars", "tables"):  # beside tars it describes them
        pq.write_table(pa.table({"image": [encoded(1)]}), tmp_path / folder / "1.parquet")
    found = find_parts([tmp_path / name for name in ("tables", "images", "tars")], size=2)
    expected = ["tables/1.parquet", "images/a/0000.png"]
    expected += [*(f"images/b/000{number}.png" for number in range(3)), "tars/1.tar", "tars/2.tar"]
    assert names(found) == [str(tmp_path / name) for name in expected]
    assert [len(part.names) for part in found.parts] == [1, 2, 2, 1, 1]
    assert found.unread[str(tmp_path / "images")] == 1
    assert found.images is None
    # Each file once; what is not there is a failure in its place.
    again = find_parts([tmp_path / "images", tmp_path / "none", tmp_path / "images" / "b"], size=9, exclude=["0001.*"])
    assert [part.kind for part in again.parts] == ["images", "failure"]
    assert names(again)[:3] == [str(tmp_path / "images" / name) for name in ("a/0000.png", "b/0000.png", "b/0002.png")]
    with pytest.raises(NothingFoundError, match="no images in"):
        find_parts([tmp_path / "empty"], size=2)
    with pytest.raises(InputError, match="no file or folder"):
        find_parts([tmp_path / "none"], size=2)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file systems that know only Unicode names")
def test_names_that_are_not_utf_8(tmp_path: Path, settings: Settings) -> None:
    [image] = save_images(tmp_path / "images", 1)
    image.rename(os.fsdecode(os.fsencode(image.parent) + b"/caf\xe9.png"))
    [table] = run([tmp_path / "images"], settings)
    assert table["path"].to_pylist() == [f"{tmp_path}/images/caf\\xe9.png"]
    assert table["reason"].to_pylist() == [None]


def test_members_of_tars(tmp_path: Path, settings: Settings) -> None:
    image = encoded(1)
    good = {"x/1.png": image, "x/1.txt": b"text", "x/1.seg.png": image, "x/._1.png": b"", "2.PNG": image}
    tar = write_tar(tmp_path / "a.tar", good)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar.read_bytes()[: tar.read_bytes().index(b"2.PNG") + 600])
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    write_tar(tmp_path / "c.tar", {"1.txt": b"text"})
    tables = pa.concat_tables(run([tar, cut, tmp_path / "b.tar", tmp_path / "c.tar"], settings))
    reasons = dict(zip(tables["path"].to_pylist(), tables["reason"].to_pylist(), strict=True))
    assert reasons == {
        f"{tar}/x/1.png": None,
        f"{tar}/2.PNG": None,
        f"{cut}/x/1.png": None,
        f"{cut}/2.PNG": "the tar file is truncated",
        f"{cut}": "it ends early, within 2.PNG",
        f"{tmp_path / 'b.tar'}": "the tar file is compressed: unpack it, as with gunzip FILE",
        f"{tmp_path / 'c.tar'}": "holds no image",
    }


def test_columns_of_parquet_files(tmp_path: Path, settings: Settings) -> None:
    [image] = save_images(tmp_path / "images", 1)
    table = pa.table({"photo": [image.read_bytes(), None, b""], "where": ["images/0000.png", "", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"no column for the image") as missing:
        find_parts([tmp_path / "a.parquet"], size=4)
    assert missing.value.hint == "columns found: photo, where; name it with --image-column"
    for column in ("photo", "where"):
        found = pa.concat_tables(run([tmp_path / "a.parquet", tmp_path / "b.parquet"], settings, column=column))
        assert found["reason"].to_pylist()[:3] == [None, *["no image in this row"] * 2]
        assert "cannot be read" in found["reason"].to_pylist()[3]
        assert found["path"].to_pylist()[3] == str(tmp_path / "b.parquet")


def test_addresses(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of(Path("s3://bucket/a/b/?region=x")) == places.Place("s3://bucket?region=x", "bucket/a/b")
    assert place_of("hf://datasets/ORG/REPO/a.tar").name == "hf://datasets/ORG/REPO/a.tar"
    assert place_of("hdfs://host:80/a").name == "hdfs://host:80/a"
    assert place_of(Path("C:/photos/a.jpg")).base == ""
    # A file system that is not read by paths of this disk.
    save_images(tmp_path / "bucket" / "images" / "b-c", 1)
    save_images(tmp_path / "bucket" / "images" / "b", 2)
    save_images(tmp_path / "bucket" / "images" / ".hidden", 1)
    (tmp_path / "bucket" / "images" / "b" / "0001.png").write_bytes(b"broken")
    (tmp_path / "bucket" / "images" / "a.jxl").touch()
    write_tar(tmp_path / "bucket" / "a.tar", {"1.png": encoded(1)})
    pq.write_table(pa.table({"image": ["images/b/0000.png", "none.png"]}), tmp_path / "bucket" / "a.parquet")
    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    for module in (places, parts):
        monkeypatch.setattr(module, "file_system", lambda base: elsewhere)
    sources = [Path("s3://bucket/images"), Path("s3://bucket/a.tar"), Path("s3://bucket/a.parquet")]
    assert find_parts(sources, size=4).passed_over == {"JPEG XL": 1}
    table = pa.concat_tables(run([*sources, Path("s3://bucket/none")], settings))
    assert table["path"].to_pylist() == [
        "s3://bucket/images/b/0000.png",
        "s3://bucket/images/b/0001.png",
        "s3://bucket/images/b-c/0000.png",
        "s3://bucket/a.tar/1.png",
        "s3://bucket/a.parquet:0",
        "s3://bucket/a.parquet:1",
        "s3://bucket/none",
    ]
    reasons = table["reason"].to_pylist()
    assert [reason is None for reason in reasons] == [True, False, True, True, True, False, False]
    assert reasons[1] == "not an image in a known format"
    assert reasons[6] == "no file or folder at s3://bucket/none"
    assert table["embedding"][0] == table["embedding"][4]


def test_another_model_and_another_way_of_computing(tmp_path: Path, settings: Settings, images: list[Path]) -> None:
    other = Settings(**settings.__dict__ | {"weights_sha256": "0" * 64})
    with pytest.raises(UsageError, match="another one on this machine"):
        run(images, other)
    tables = run(images, settings)
    tables[2] = tables[2].set_column(3, "made_with", pa.array(['{"device": "cuda"}'] * len(tables[2])))
    output = tmp_path / "out.parquet"
    with pytest.raises(CloobError, match="compute in different ways"):
        write_table(output, tmp_path / "out.failures.jsonl", tables, {}, "float32")
    with pytest.raises(NothingFoundError):
        write_table(output, tmp_path / "out.failures.jsonl", run([images[5]], settings), {}, "float32")
    assert list(tmp_path.iterdir()) == []
    write_table(output, tmp_path / "out.failures.jsonl", run(images, settings), {}, "float16")
    assert pq.read_schema(output).field("embedding").type.value_type == pa.float16()


def test_a_file_that_is_too_large_to_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [image] = save_images(tmp_path, 1)
    monkeypatch.setattr(places, "MOST_BYTES", 50)
    [table] = read_parts([Part("images", "", [str(image)], ["a"]).to_json()])
    assert "too large: a file of" in table["reason"][0].as_py()
    assert not table["data"][0].is_valid
