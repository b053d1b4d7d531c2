"""Embeddings on disk: all files together, or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cloob_cli.errors import Failure, NothingFoundError
from cloob_cli.inference.embed import EmbeddedBatch, write_embeddings
from cloob_cli.inference.index.files import IndexFiles

ROWS = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
BATCHES = [
    EmbeddedBatch(["a", "b"], ROWS[:2]),
    EmbeddedBatch([], None, [Failure("x", "empty")]),
    EmbeddedBatch(["c", "d\n", "e"], ROWS[2:], [Failure("y", "truncated")]),
]


def write(output: Path, batches: object) -> object:
    return write_embeddings(IndexFiles.of(output), batches, dtype="float32", metadata={"model": "m"})  # type: ignore[arg-type]


def test_writes_rows_names_and_failures_in_order(tmp_path: Path) -> None:
    written = write(tmp_path / "emb.npy", BATCHES)
    np.testing.assert_array_equal(np.load(tmp_path / "emb.npy"), ROWS.numpy())
    table = pq.read_table(tmp_path / "emb.parquet")
    assert table.column("path").to_pylist() == ["a", "b", "c", "d\n", "e"]
    assert table.schema.metadata == {b"model": b"m"}
    assert (tmp_path / "emb.failures.jsonl").read_text().splitlines() == [
        '{"path": "x", "reason": "empty"}',
        '{"path": "y", "reason": "truncated"}',
    ]
    assert (written.rows, written.failures) == (5, tmp_path / "emb.failures.jsonl")  # type: ignore[attr-defined]
    write(tmp_path / "emb.npy", BATCHES[:1])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["emb.npy", "emb.parquet"]
    assert np.load(tmp_path / "emb.npy").shape == (2, 3)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_half_way_leaves_the_earlier_files(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "emb.npy", BATCHES)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def broken() -> Iterator[EmbeddedBatch]:
        yield BATCHES[0]
        raise error

    with pytest.raises(error):
        write(tmp_path / "emb.npy", broken())
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_zero_rows_are_no_success(tmp_path: Path) -> None:
    with pytest.raises(NothingFoundError):
        write(tmp_path / "emb.npy", BATCHES[1:2])
    assert not list(tmp_path.iterdir())
