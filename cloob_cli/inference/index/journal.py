"""Finished rows of a run that is under way, in a folder beside its output: a run that is killed loses no batch.

Every run writes an Arrow stream of its own, a record batch at a time. Where the last one was cut short, reading ends.
"""

from __future__ import annotations

import mmap
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloob_cli.inference.index.file_stamp import Stamp
from cloob_cli.inference.index.known_rows import KnownRows
from cloob_cli.inference.provenance import with_decoding

if TYPE_CHECKING:
    import pyarrow

_PART = re.compile(r"(\d{4,})\.arrows")
# What reading a part raises; pyarrow's errors are among them.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, NotImplementedError)


class Journal:
    """A part of the journal in `folder` that this run appends to; it is there from the first batch on.

    Args:
        width: D, the length of a row.
        dtype: of a row's elements.
        made_with: how all rows are made, stored with them.
    """

    def __init__(self, folder: Path, width: int, dtype: np.dtype, made_with: dict[str, str]) -> None:
        self._folder, self._dtype = folder, dtype
        self._schema = _schema(width, dtype, made_with)
        self._open = ExitStack()
        self._writer: pyarrow.RecordBatchStreamWriter | None = None
        self.path: Path | None = None

    def append(self, names: Sequence[str], stamps: Sequence[Stamp], rows: np.ndarray) -> None:
        """Append rows [n, D] with the names and stamps of their files."""
        import pyarrow as pa

        self._writer = self._writer or self._begin()
        rows = np.ascontiguousarray(rows, self._dtype)
        columns = [
            pa.array(names, pa.string()),
            pa.array([stamp.size for stamp in stamps], pa.int64()),
            pa.array([stamp.mtime_ns for stamp in stamps], pa.int64()),
            pa.array([stamp.sha256 for stamp in stamps], pa.string()),
            pa.array([zlib.crc32(row) for row in rows], pa.uint32()),
            pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1]),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._file.flush()

    def _begin(self) -> pyarrow.RecordBatchStreamWriter:
        import pyarrow as pa

        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((number for number, _ in _parts(self._folder)), default=-1)
        while True:
            self.path = self._folder / f"{number:04}.arrows"
            try:
                self._file = self._open.enter_context(self.path.open("xb"))
                break
            except FileExistsError:  # another process of the same run was faster
                number += 1
        return pa.ipc.new_stream(self._file, self._schema)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *problem: object) -> None:
        self._open.close()


def read_journal(folder: Path, fits: Callable[[dict[str, str]], bool], known: KnownRows) -> dict[str, str] | None:
    """Add the rows of killed runs to `known`.

    Args:
        fits: called with how a part was made; where it says no, the part is deleted. Parts that were made in another
            way than the last one are deleted too.

    Returns:
        how the rows were made; None where there are none.
    """
    newest: dict[str, str] | None = None
    count = 0
    for _, path in reversed(_parts(folder)):
        made_with = _made_with(path)
        if made_with is None or not fits(made_with) or newest not in (None, made_with):
            path.unlink(missing_ok=True)
        else:
            newest = made_with
            count += read_part(path, known)
    return newest if count else None


def read_part(path: Path, known: KnownRows) -> int:
    """Add the rows of one part to `known`, up to where it is damaged; returns their number."""
    import pyarrow as pa

    count = 0
    try:
        for batch in pa.ipc.open_stream(_mapped(path)):
            count += _add(batch, known)
    except _DAMAGED:
        pass
    return count


def remove_journal(folder: Path) -> None:
    """Delete a journal and its folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _parts(folder: Path) -> list[tuple[int, Path]]:
    found = [(match, path) for path in folder.glob("*.arrows") if (match := _PART.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _schema(width: int, dtype: np.dtype, made_with: dict[str, str]) -> pyarrow.Schema:
    import pyarrow as pa

    fields = [("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string())]
    fields += [("crc32", pa.uint32()), ("embedding", pa.list_(pa.from_numpy_dtype(dtype), width))]
    return pa.schema(fields, metadata=made_with)


def _made_with(path: Path) -> dict[str, str] | None:
    """The description of a part's making; None where that cannot be read."""
    import pyarrow as pa

    try:
        metadata = pa.ipc.open_stream(_mapped(path)).schema.metadata or {}
    except _DAMAGED:
        return None
    return with_decoding({key.decode(): value.decode() for key, value in metadata.items()})


def _mapped(path: Path) -> pyarrow.Buffer:
    import pyarrow as pa

    with path.open("rb") as file:  # pyarrow itself opens only paths that are UTF-8
        return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _add(batch: pyarrow.RecordBatch, known: KnownRows) -> int:
    vectors = batch.column("embedding")
    rows = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), vectors.type.list_size)
    if [zlib.crc32(row) for row in rows] != batch.column("crc32").to_pylist():  # a machine that lost its power
        return 0
    columns = (batch.column(name).to_pylist() for name in ("size", "mtime_ns", "sha256"))
    known.add(batch.column("name").to_pylist(), [Stamp(*values) for values in zip(*columns, strict=True)], rows)
    return len(batch)
