"""A command may replace its own files, and nobody else's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from closed_folder import close_folder

from cloob_cli.errors import Failure, UsageError
from cloob_cli.inference.output_paths import Command, check_output, failures_path, made_by
from cloob_cli.inference.result_rows import Choice, Classified, open_rows
from cloob_cli.inference.row_writers import write_failures

SUFFIXES: dict[Command, list[str]] = {"embed": [".npy"], "classify": [".csv", ".jsonl", ".parquet"]}
LEGACY = dict.fromkeys(("model", "weights_sha256", "preprocessing", "version"), "?")


def check(output: Path, command: Command = "embed", **options: object) -> None:
    check_output(output, command, SUFFIXES[command], **options)  # type: ignore[arg-type]


def embedded(npy: Path, rows: int = 3, metadata: dict[str, str] | None = None) -> None:
    np.save(npy, np.zeros((rows, 4), np.float32))
    index = pa.schema([pa.field("path", pa.string())], metadata=metadata or {"made_by": "cloob embed"})
    pq.write_table(pa.table({"path": ["a", "b", "c"]}, schema=index), npy.with_suffix(".parquet"))


def classified(path: Path, top_k: int = 1) -> None:
    choices = [Choice("cat", 0.5, 0.1)] * top_k
    metadata = {"made_by": "cloob classify"}
    with open_rows(path, path.suffix, top_k, metadata) as write:
        write([Classified("a\n,b.png", choices), Classified("c.png", choices)])


def failed(output: Path) -> None:
    write_failures(failures_path(output), [Failure("x.png", "empty"), Failure("y\n.png", "truncated")])


def refused(output: Path, command: Command, named: Path) -> None:
    before = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises(UsageError) as caught:
        check(output, command)
    assert caught.value.message.startswith(f"{named} exists")
    assert "--force" in str(caught.value.hint)
    check(output, command, force=True)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == before


def test_the_suffix_and_where_failures_go(tmp_path: Path) -> None:
    check(tmp_path / "a.NPY")
    with pytest.raises(UsageError, match="unknown file type"):
        check(tmp_path / "a.txt")
    assert failures_path(Path("x/emb.npy")) == Path("x/emb.failures.jsonl")


# --- places where nothing can be written ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e.npy", "e.parquet", "e.failures.jsonl"])
def test_a_folder_in_the_place_of_any_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=f"{name} is a folder"):
        check(tmp_path / "e.npy", force=True)


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        check(tmp_path / "file" / "deeper" / "e.npy")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="no permission to write"):
        check(tmp_path / "closed" / "deeper" / "e.npy")


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    (closed / "deeper").mkdir(parents=True)
    close_folder(closed, monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    with pytest.raises(UsageError, match=f"no permission to write in {re.escape(str(closed))}$"):
        check(closed / "deeper" / "e.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "e.parquet")
    with pytest.raises(UsageError, match="is not a regular file"):
        check(tmp_path / "e.npy")


# --- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", [lambda path: path, lambda path: path.parent / "." / path.name])
def test_an_input_is_never_overwritten(tmp_path: Path, alias: Callable[[Path], Path]) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,probability,cosine\n")
    for force in (False, True):
        with pytest.raises(UsageError, match="which is an input"):
            check(alias(labels), "classify", inputs=[tmp_path / "missing", labels], force=force)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_nor_by_way_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\n")
    (tmp_path / "e.parquet").symlink_to("texts.txt")
    with pytest.raises(UsageError, match="which is an input"):
        check(tmp_path / "e.npy", inputs=[tmp_path / "texts.txt"], force=True)


# --- own files and others' ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, LEGACY])
def test_own_embeddings_may_be_replaced(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    embedded(tmp_path / "e.npy", metadata=metadata)
    check(tmp_path / "e.npy")
    failed(tmp_path / "e.npy")
    check(tmp_path / "e.npy")


@pytest.mark.parametrize("suffix", SUFFIXES["classify"])
@pytest.mark.parametrize("top_k", [1, 3])
def test_own_labels_may_be_replaced(tmp_path: Path, suffix: str, top_k: int) -> None:
    classified(tmp_path / f"out{suffix}", top_k)
    check(tmp_path / f"out{suffix}", "classify")
    failed(tmp_path / "out.csv")
    for other in SUFFIXES["classify"]:
        check(tmp_path / f"out{other}", "classify")


def test_labels_of_an_earlier_version_are_known_by_their_columns(tmp_path: Path) -> None:
    with open_rows(tmp_path / "out.parquet", ".parquet", 1, {}) as write:
        write([Classified("a.png", [Choice("cat", 0.5, 0.1)])])
    check(tmp_path / "out.parquet", "classify")


def test_empty_files_may_be_replaced(tmp_path: Path) -> None:
    for name in ("e.npy", "e.parquet", "e.failures.jsonl"):
        (tmp_path / name).touch()
    check(tmp_path / "e.npy")


def test_a_table_of_somebody_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["precious"]}), tmp_path / "e.parquet")
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.parquet")


def test_an_array_without_its_index_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.zeros(3))
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.npy")


@pytest.mark.parametrize("content", [b"no array", b"\x93NUMPY\x01\x00"])
def test_what_is_damaged_is_nobody_s(tmp_path: Path, content: bytes) -> None:
    embedded(tmp_path / "e.npy")
    (tmp_path / "e.npy").unlink()
    (tmp_path / "e.parquet").write_bytes(content)
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.parquet")


def test_what_is_no_array_is_refused_beside_an_index(tmp_path: Path) -> None:
    embedded(tmp_path / "e.npy")
    (tmp_path / "e.npy").write_bytes(b"no array")
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.npy")


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00", b"\x93NU", bytes(200)])
def test_a_damaged_array_belongs_to_the_index_beside_it(tmp_path: Path, content: bytes) -> None:
    embedded(tmp_path / "e.npy")
    (tmp_path / "e.npy").write_bytes(content)
    check(tmp_path / "e.npy")
    (tmp_path / "e.parquet").unlink()
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.npy")


def test_an_array_of_another_length_is_refused(tmp_path: Path) -> None:
    embedded(tmp_path / "e.npy", rows=4)
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.npy")


def test_one_command_does_not_replace_the_other_s_table(tmp_path: Path) -> None:
    classified(tmp_path / "photos.parquet")
    refused(tmp_path / "photos.npy", "embed", tmp_path / "photos.parquet")
    embedded(tmp_path / "e.npy")
    refused(tmp_path / "e.parquet", "classify", tmp_path / "e.parquet")


def test_one_command_does_not_delete_the_other_s_failures(tmp_path: Path) -> None:
    classified(tmp_path / "photos.csv")
    failed(tmp_path / "photos.csv")
    refused(tmp_path / "photos.npy", "embed", tmp_path / "photos.failures.jsonl")
    embedded(tmp_path / "e.npy")
    failed(tmp_path / "e.npy")
    refused(tmp_path / "e.csv", "classify", tmp_path / "e.failures.jsonl")


def test_failures_that_could_be_either_s_are_refused(tmp_path: Path) -> None:
    embedded(tmp_path / "e.npy")
    classified(tmp_path / "e.csv")
    check(tmp_path / "e.npy")
    failed(tmp_path / "e.npy")
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.failures.jsonl")
    refused(tmp_path / "e.csv", "classify", tmp_path / "e.failures.jsonl")


@pytest.mark.parametrize(
    "content", ["notes\n", "{}\n", '{"path": "a", "reason": "b"}\n{"path": "a"}\n', '["path", "reason"]\n', "\xff"]
)
def test_a_list_of_somebody_else_is_refused(tmp_path: Path, content: str) -> None:
    embedded(tmp_path / "e.npy")
    (tmp_path / "e.failures.jsonl").write_text(content, encoding="latin-1")
    refused(tmp_path / "e.npy", "embed", tmp_path / "e.failures.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.csv", b"name,price\nbread,3\n"),
        ("out.csv", b"path,label,probability,cosine,notes\n"),
        ("out.csv", b"\x00\xff"),
        ("out.jsonl", b'{"path": "a"}\n'),
        ("out.jsonl", b"[" * 100_000),
        ("out.jsonl", b"12\n"),
    ],
)
def test_tables_of_other_people_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "classify", tmp_path / name)
    assert made_by(tmp_path / name) is None
