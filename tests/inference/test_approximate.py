"""The approximate index: it finds nearly all nearest rows, and is never used for other rows than its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lancedb")

from cloob_cli.inference.search import approximate
from cloob_cli.inference.search.nearest import nearest, nearest_of_each

LONG_AGO = 1_600_000_000_000_000_000


def unit_rows(count: int, seed: int, width: int = 20) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save(path: Path, rows: np.ndarray, mtime: int = LONG_AGO) -> np.ndarray:
    np.save(path, rows)
    os.utime(path, ns=(mtime, mtime))
    return rows


def test_an_index_follows_its_rows(tmp_path: Path) -> None:
    """Built, opened again, used for rows that changed a little, and given up for others."""
    embeddings, folder = tmp_path / "emb.npy", tmp_path / "index"
    rows, queries = save(embeddings, unit_rows(9000, 0)), unit_rows(8, 1)
    assert approximate.open_fitting(folder, embeddings, rows) is None
    built = approximate.build(folder, embeddings, rows, queries)
    assert built.effort is not None
    expected = nearest_of_each(rows, queries, 10)
    found = [[hit.row for hit in built.nearest(rows, query, 10)] for query in queries]
    shares = [len(np.intersect1d(*pair)) for pair in zip(found, expected, strict=True)]
    assert sum(shares) / 80 == built.recall >= 0.95  # the same queries: the same recall
    best = built.nearest(rows, queries[0], 3)
    assert best[0] == nearest(rows, queries[0], 1)[0]

    opened = approximate.open_fitting(folder, embeddings, rows)
    assert opened is not None
    assert (opened.effort, opened.recall) == (built.effort, built.recall)
    assert opened.nearest(rows, queries[0], 3) == best

    # Rows in another order, some gone, and two new ones of which one is a query itself.
    kept = np.delete(rows, np.arange(0, 9000, 50), axis=0)[::-1]
    changed = save(embeddings, np.concatenate([queries[:1], kept, unit_rows(1, 2)]), LONG_AGO + 1)
    followed = approximate.open_fitting(folder, embeddings, changed)
    assert followed is not None
    assert followed.fresh.tolist() == [0, len(changed) - 1]
    hits = followed.nearest(changed, queries[0], 10)
    assert hits[0].row == 0
    assert len(np.intersect1d([hit.row for hit in hits], nearest_of_each(changed, queries[:1], 10)[0])) >= 9
    again = approximate.open_fitting(folder, embeddings, changed)
    assert again is not None
    assert again.nearest(changed, queries[0], 10) == hits

    other = save(embeddings, unit_rows(9000, 3), LONG_AGO + 2)
    assert approximate.open_fitting(folder, embeddings, other) is None


def test_a_damaged_index_is_built_anew(tmp_path: Path) -> None:
    embeddings, folder = tmp_path / "emb.npy", tmp_path / "index"
    rows = save(embeddings, unit_rows(500, 0, 16))
    approximate.build(folder, embeddings, rows, rows[:4])
    state = folder / "state.json"
    whole = state.read_text()
    for damaged in (whole[: len(whole) // 2], whole.replace('"format": 1', '"format": 2'), "[]"):
        state.write_text(damaged)
        assert approximate.open_fitting(folder, embeddings, rows) is None
    state.write_text(whole)
    assert approximate.open_fitting(folder, embeddings, rows) is not None
    (folder / "built.npz").write_bytes(b"")
    assert approximate.open_fitting(folder, embeddings, rows) is None


def test_equal_rows_are_told_apart() -> None:
    old = np.array([5, 7, 5, 9, 5], np.uint64)
    new = np.array([9, 5, 5, 3, 9], np.uint64)
    numbers, fresh = approximate._match(old, new)
    assert numbers.tolist() == [1, -1, 2, 0, -1]
    assert fresh.tolist() == [3, 4]


def test_the_nearest_of_each_are_those_of_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloob_cli.inference.search.nearest._BLOCK", 64 * 4 * 20)  # 64 rows at a time
    rows, queries = unit_rows(300, 0), unit_rows(5, 1)
    expected = np.sort(np.argsort(-(queries @ rows.T), axis=1)[:, :7], axis=1)
    np.testing.assert_array_equal(np.sort(nearest_of_each(rows, queries, 7), axis=1), expected)
