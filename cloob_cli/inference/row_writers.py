"""Write result files row by row: NumPy arrays of unknown length, Parquet, the list of failures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cloob_cli.errors import Failure

if TYPE_CHECKING:
    import pyarrow

_ROW_GROUP = 16_384  # rows held before they are written: large enough to compress, small enough to forget


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Write one JSON object a line, `{"path", "reason"}`; delete the file where there are no failures."""
    failures = list(failures)
    if not failures:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"path": failure.name, "reason": failure.reason}) + "\n" for failure in failures)


class NpyRows:
    """A `.npy` file of float rows [N, width] that grows; N stands in its header only after `finish`."""

    def __init__(self, stream: BinaryIO, width: int, dtype: np.dtype) -> None:
        self._stream, self._width, self._dtype = stream, width, dtype
        self.count = 0
        self._header_length = self._write_header()

    def write(self, rows: np.ndarray) -> None:
        """Append rows [n, width], rounded to the file's dtype."""
        self._stream.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self.count += len(rows)

    def finish(self) -> None:
        self._stream.seek(0)
        if self._write_header() != self._header_length:
            raise RuntimeError("the header of a .npy file changed its length")  # NumPy leaves room for 20 digits

    def _write_header(self) -> int:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.count, self._width),
        }
        np.lib.format.write_array_header_1_0(self._stream, header)
        return self._stream.tell()


class ParquetRows:
    """A Parquet file that takes rows as dictionaries and holds no more than a row group of them."""

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        from pyarrow import parquet

        self._file = path.open("wb")  # pyarrow itself opens only paths that are UTF-8
        self._writer = parquet.ParquetWriter(self._file, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        with self._file:
            if self._rows:
                self._flush()
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


@contextmanager
def parquet_rows(path: Path, schema: pyarrow.Schema) -> Iterator[ParquetRows]:
    """Open a `ParquetRows` and close it at the end, also after an error (the file is then incomplete)."""
    rows = ParquetRows(path, schema)
    try:
        yield rows
    finally:
        rows.close()
