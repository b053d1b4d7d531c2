"""Files that pyarrow reads: opened by itself, whatever their name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cloob_cli.inference.arrow_file import arrow_file
from cloob_cli.inference.cluster.parts import find_parts
from cloob_cli.inference.cluster.read_part import read_part
from cloob_cli.inference.index.files import IndexFiles
from cloob_cli.inference.index.reading import find_index
from cloob_cli.inference.output_paths import rows_of_parquet


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.parquet")
    with path.open("wb") as stream:
        parquet.write_table(pa.table({"path": ["a", "b"]}), stream)
    with arrow_file(path) as opened:
        assert parquet.ParquetFile(opened).read()["path"].to_pylist() == ["a", "b"]
    assert rows_of_parquet(path) == 2


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, arrow_file(tmp_path / "none"):
        pass
    assert raised.value.filename == str(tmp_path / "none")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The kinds of files that pyarrow is given to read Parquet from.

    One of its threads that let go of a Python file aborted the process at its end, once in some hundred times.
    """
    kinds: list[type] = []

    class Watched(parquet.ParquetFile):  # type: ignore[misc]
        def __init__(self, source: object, *arguments: object, **options: object) -> None:
            kinds.append(type(source))
            super().__init__(source, *arguments, **options)

    monkeypatch.setattr(parquet, "ParquetFile", Watched)
    monkeypatch.setattr(parquet.core, "ParquetFile", Watched)
    return kinds


def test_an_index_is_read_from_files_of_pyarrow_s_own(tmp_path: Path, given: list[type]) -> None:
    columns = {"path": ["a"], "size": [1], "mtime_ns": [1], "sha256": ["0"]}
    parquet.write_table(pa.table(columns), tmp_path / "emb.parquet")
    np.save(tmp_path / "emb.npy", np.ones((1, 4), np.float32))
    stored = find_index(IndexFiles.of(tmp_path / "emb.npy", "npy"))
    assert stored is not None
    assert stored.names == ["a"]
    assert set(given) == {pa.OSFile}


def test_images_in_parquet_files_are_read_from_files_of_pyarrow_s_own(tmp_path: Path, given: list[type]) -> None:
    parquet.write_table(pa.table({"image": [b"one", b"two"]}), tmp_path / "images.parquet")
    [part] = find_parts([tmp_path / "images.parquet"], size=4).parts
    assert [content.data for content in read_part(part)] == [b"one", b"two"]
    assert given == [pa.OSFile] * 2  # to look for the column, and for the images
