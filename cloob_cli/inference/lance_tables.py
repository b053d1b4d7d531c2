"""LanceDB, an optional package: whether it is there, and tables with a column of vectors."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloob_cli.errors import InputError, MissingExtraError
from cloob_cli.text_format import first_line

if TYPE_CHECKING:
    import pyarrow

VECTOR = "vector"
_TABLE = "rows"
_TAIL = 1 << 20  # bytes at the end of a data file in which its schema stands
_WRAPPERS = re.compile(r"(?:lance error|LanceError\(\w+\)|Generic \S+ error|Wrapped error|External error): ")
_SOURCE_FILE = re.compile(r",?\s*\S+\.rs:\d+.*")
_TWICE = re.compile(r"^(.+?: )\1+")


def has_lancedb() -> bool:
    """True where LanceDB is installed; it is not imported, which takes a second."""
    return importlib.util.find_spec("lancedb") is not None


def is_table(folder: Path) -> bool:
    """True where a folder is a Lance table, by what it holds; LanceDB need not be installed."""
    return (folder / "_versions").is_dir()


def has_data_with(folder: Path, key: str, value: str) -> bool:
    """True where the data of a damaged table have `key` = `value` in the metadata of their schema."""
    # An entry of a map in the encoding of Protocol Buffers; the schema is behind the rows.
    entry = b"".join(
        tag + bytes([len(text)]) + text for tag, text in ((b"\n", key.encode()), (b"\x12", value.encode()))
    )
    for path in folder.glob("data/*.lance"):
        try:
            with path.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
                if entry in stream.read():
                    return True
        except OSError:
            pass
    return False


def lance_reason(problem: BaseException) -> str:
    """The reason of an error of LanceDB, without the errors wrapped around it and the places in the source code."""
    line = first_line(problem)
    return _TWICE.sub(r"\1", _SOURCE_FILE.sub("", _WRAPPERS.sub("", line))).strip() or line


def connect(folder: Path) -> Any:
    """Open the folder that holds tables, `NAME.lance` each.

    Raises:
        MissingExtraError: LanceDB is not installed.
    """
    os.environ.setdefault("LANCEDB_LOG", "off")  # it writes on stderr itself; what matters is raised
    try:
        import lancedb
    except ImportError:
        raise MissingExtraError.of("search", "lancedb") from None
    return lancedb.connect(folder)


def vector_field(width: int, dtype: np.dtype, name: str = VECTOR) -> pyarrow.Field:
    """The field of a table whose column `name` holds `width` numbers a row."""
    import pyarrow as pa

    return pa.field(name, pa.list_(pa.from_numpy_dtype(dtype), width), nullable=False)


def vector_column(rows: np.ndarray) -> pyarrow.Array:
    """Rows [n, D] as a column of lists of fixed size."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def write_table(folder: Path, name: str, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> Any:
    """Write the table `folder/name.lance`, which must not exist, a batch at a time; returns it open."""
    import pyarrow as pa

    reader = pa.RecordBatchReader.from_batches(schema, batches)
    return connect(folder).create_table(name, reader, schema=schema)


def fill_table(folder: Path, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> None:
    """Make the empty folder `folder` itself a table, a batch at a time.

    What `batches` raises is raised as it is.
    """
    problem: BaseException | None = None

    def watched() -> Iterator[pyarrow.RecordBatch]:
        nonlocal problem
        try:
            yield from batches
        except BaseException as raised:  # Arrow and Lance make another error of it, also of Ctrl-C
            problem = raised
            raise

    try:
        write_table(folder, _TABLE, schema, watched())
    finally:
        if problem is not None:
            raise problem
    inner = folder / f"{_TABLE}.lance"
    for path in inner.iterdir():  # a table has no path of its own in it
        path.rename(folder / path.name)
    inner.rmdir()


def open_table(folder: Path) -> Any:
    """Open the table that is the folder NAME.lance.

    Raises:
        FileNotFoundError: there is no such folder.
        MissingExtraError: LanceDB is not installed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, os.strerror(2), str(folder))
    return connect(folder.parent).open_table(folder.stem)


class LanceRows:
    """The vectors of a table [N, D], which are read when they are asked for.

    Args:
        hint: of the error about a damaged table.
    """

    def __init__(self, folder: Path, table: Any, column: str, hint: str) -> None:
        self._folder, self._table, self._column, self._hint = folder, table, column, hint
        kind = table.schema.field(column).type
        self.shape = (int(table.count_rows()), int(kind.list_size))
        self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Rows [n, D] of these numbers, n at least 1.

        Raises:
            InputError: the table is damaged.
        """
        wanted, places = np.unique(numbers, return_inverse=True)
        return self._read(lambda: self._table.take_offsets(wanted.tolist()))[places]

    def all(self) -> np.ndarray:
        """All rows.

        Raises:
            InputError: the table is damaged.
        """
        return self._read(self._table.search)

    def _read(self, query: Callable[[], Any]) -> np.ndarray:
        try:
            column = query().select([self._column]).to_arrow().column(self._column).combine_chunks()
        except Exception as problem:  # LanceDB has no class of errors for a damaged table
            raise InputError(f"{self._folder} cannot be read ({lance_reason(problem)})", self._hint) from None
        rows: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.shape[1])
        return rows
