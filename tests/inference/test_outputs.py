"""Arrays that grow on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.errors import UsageError
from cloob_cli.inference.outputs import NpyRows, check_output, failures_path


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 5), st.sampled_from(["float32", "float16"]))
def test_numpy_reads_what_was_streamed(sizes: list[int], width: int, dtype: str) -> None:
    generator = np.random.default_rng(len(sizes))
    parts = [generator.normal(size=(size, width)).astype(np.float32) for size in sizes]
    stream = io.BytesIO()
    rows = NpyRows(stream, width, np.dtype(dtype))
    for part in parts:
        rows.write(part)
    rows.finish()
    stream.seek(0)
    loaded = np.load(stream)
    np.testing.assert_array_equal(loaded, np.concatenate([*parts, np.zeros((0, width))]).astype(dtype))
    assert loaded.dtype == dtype
    assert loaded.flags.c_contiguous


def test_the_header_has_room_for_any_count() -> None:
    stream = io.BytesIO()
    rows = NpyRows(stream, 512, np.dtype(np.float16))
    rows.count = 10**15
    rows.finish()
    stream.seek(0)
    assert np.lib.format.read_magic(stream) == (1, 0)
    assert np.lib.format.read_array_header_1_0(stream)[0] == (10**15, 512)


def test_outputs_are_checked_beforehand(tmp_path: Path) -> None:
    check_output(tmp_path / "a.NPY", [".npy"])
    with pytest.raises(UsageError, match="unknown kind of file"):
        check_output(tmp_path / "a.txt", [".npy"])
    (tmp_path / "b.npy").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path / "b.npy", [".npy"])
    assert failures_path(Path("x/emb.npy")) == Path("x/emb.failures.jsonl")
