"""Arrays that grow on disk."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.inference.row_writers import NpyRows


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
