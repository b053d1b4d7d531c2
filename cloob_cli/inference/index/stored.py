"""Read an index: its rows, and the files that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cloob_cli.errors import InputError, MissingExtraError, UsageError
from cloob_cli.inference.arrow_file import arrow_file
from cloob_cli.inference.index.files import IndexFiles
from cloob_cli.inference.index.known import KnownRows, Rows
from cloob_cli.inference.index.row_parts import RowParts
from cloob_cli.inference.index.stamp import Stamp
from cloob_cli.inference.index.writing import EMBEDDING
from cloob_cli.inference.lance_tables import LanceRows, lance_reason, open_table
from cloob_cli.inference.npy_file import open_rows
from cloob_cli.inference.provenance import with_decoding
from cloob_cli.text_format import counted, first_line

if TYPE_CHECKING:
    import pyarrow

# What has to agree where rows stand side by side, in the order in which it is told; and the option that sets it.
_COMPARED = {
    "weights_sha256": None,
    "preprocessing": None,
    "version": None,
    "dtype": "--dtype",
    "decoding": "decoding (--exact, or not)",
    "device": "--device",
    "precision": "--precision",
    "pass_size": "--batch-size",
}
_STAMP = ("size", "mtime_ns", "sha256")
CAPTION = "caption"
_HINT = "start anew with --rebuild"
EMBED_ANEW = "`cloob embed DIR -o FILE --rebuild` makes them anew"


@dataclass
class StoredIndex:
    """An index that was read: names and rows [N, D] in one order, and the metadata that say how they were made.

    `stamps` is empty where the files that the rows were made of are not told, as in indexes of version 0.1.0.
    `captions` has one for each row, or none, and `caption_rows` their embeddings; both are of an index with captions.
    """

    names: list[str]
    rows: Rows
    stamps: list[Stamp]
    metadata: dict[str, str]
    captions: list[str | None] = field(default_factory=list)
    caption_rows: np.ndarray | None = None


@dataclass
class OpenIndex:
    """An index of which no name was read yet: a column of names and rows [N, D] in one order, and the metadata."""

    names: pyarrow.ChunkedArray
    rows: np.ndarray | RowParts
    metadata: dict[str, str]


def read_index(files: IndexFiles) -> StoredIndex:
    """Read an index; rows are mapped from the file, or read from a Lance table when they are asked for.

    Raises:
        InputError: a file is missing, is damaged, or does not belong to the other.
    """
    table, rows = _read(files, None)
    with _told_as_damaged(files):
        names, stamps = table.column(files.column).to_pylist(), _stamps(table)
        index = StoredIndex(names, rows, stamps, _metadata(table))
        if files.has_captions and files.beside and CAPTION in table.column_names:
            index.captions = table.column(CAPTION).to_pylist()
            index.caption_rows = _checked(files.beside, files.index, open_rows(files.beside, _HINT), table)
    return index


def open_index(files: IndexFiles) -> OpenIndex:
    """Open an index to look at some of its rows: names remain in a column, which a million of them fit in.

    The rows of a Lance table are read into memory.

    Raises:
        InputError: as for `read_index`.
    """
    table, rows = _read(files, [files.column])
    whole = rows.all() if isinstance(rows, LanceRows) else rows
    return OpenIndex(table.column(files.column), whole, _metadata(table))


def _read(files: IndexFiles, columns: list[str] | None) -> tuple[pyarrow.Table, np.ndarray | LanceRows]:
    from pyarrow import parquet

    with _told_as_damaged(files):
        if files.form == "lance":
            opened = open_table(files.embeddings)
            rows = LanceRows(files.embeddings, opened, EMBEDDING, _HINT)
            names = columns or [name for name in opened.schema.names if name != EMBEDDING]
            table = opened.search().select(names).to_arrow().replace_schema_metadata(opened.schema.metadata)
            return table, _checked(files.embeddings, files.index, rows, table)
        with arrow_file(files.index) as opened_index:
            table = parquet.ParquetFile(opened_index).read(columns)  # `read_table` imports twice as much of pyarrow
        array = open_rows(files.embeddings, _HINT)
        table.column(files.column)
    return table, _checked(files.embeddings, files.index, array, table)


AnyRows = TypeVar("AnyRows", np.ndarray, LanceRows)


def _checked(path: Path, index: Path, rows: AnyRows, table: pyarrow.Table) -> AnyRows:
    if len(rows) != len(table):
        raise InputError(
            f"{path} and {index.name} do not belong together: {rows.shape} and {counted(len(table), 'row')}", _HINT
        )
    told = (table.schema.metadata or {}).get(b"dtype", rows.dtype.name.encode()).decode()
    if told != rows.dtype.name:
        raise InputError(f"{path} and {index.name} do not belong together: {rows.dtype.name} and {told}", _HINT)
    return rows


@contextmanager
def _told_as_damaged(files: IndexFiles) -> Iterator[None]:
    try:
        yield
    except (InputError, MissingExtraError):
        raise
    except FileNotFoundError as problem:
        raise InputError(f"no embeddings at {problem.filename}", "`cloob embed DIR -o emb.npy` makes them") from None
    except Exception as problem:  # whatever pyarrow and NumPy say of damaged files
        if files.form == "lance":
            raise InputError(f"{files.embeddings} cannot be read ({lance_reason(problem)})", _HINT) from None
        raise InputError(
            f"{files.embeddings} cannot be read with its index {files.index.name} ({first_line(problem)})", _HINT
        ) from None


def _metadata(table: pyarrow.Table) -> dict[str, str]:
    return with_decoding({key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()})


def find_index(files: IndexFiles) -> StoredIndex | None:
    """Read an index that tells the files of its rows; None where there is none, or one that does not.

    Raises:
        InputError: it is damaged.
    """
    if files.form == "lance":
        if not files.embeddings.is_dir():
            return None
    elif not all(path.is_file() and path.stat().st_size for path in (files.embeddings, files.index)):
        return None
    try:
        columns = set(_schema(files).names)
    except Exception:  # `read_index` says what is wrong
        columns = {files.column, *_STAMP}
    return read_index(files) if {files.column, *_STAMP} <= columns else None


def holds_texts(files: IndexFiles) -> bool:
    """True where rows are told to be embeddings of texts (`cloob embed --text`), not of files."""
    try:
        names = _schema(files).names
    except Exception:  # damaged, or not there
        return False
    return "text" in names and files.column not in names


def _schema(files: IndexFiles) -> pyarrow.Schema:
    from pyarrow import parquet

    if files.form == "lance":
        return open_table(files.embeddings).schema
    with arrow_file(files.index) as opened:
        return parquet.read_schema(opened)


@contextmanager
def known_rows(index: StoredIndex | None) -> Iterator[KnownRows]:
    """The rows of an index, which gives them up, and to which others can be added; in the end all files are let go."""
    known = KnownRows()
    try:
        if index and index.stamps:
            known.add(index.names, index.stamps, index.rows)
            index.rows = np.empty((0, index.rows.shape[1]), index.rows.dtype)
        yield known
    finally:
        known.close()


def difference(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first key in which two ways of making rows differ that must not be mixed; what only one says is no matter."""
    for key in _COMPARED:
        if key in stored and key in wanted and stored[key] != wanted[key]:
            return key
    return None


def refuse_other(what: Path, stored: Mapping[str, str], wanted: Mapping[str, str], remedy: str = _HINT) -> None:
    """Refuse to mix rows that were made in different ways, or to compare them.

    Raises:
        UsageError: model, preprocessing, version or an option that changes numbers is another one.
    """
    if key := difference(stored, wanted):
        option = _COMPARED[key]
        hint = f"choose {option} as before, or {remedy}" if option else remedy
        raise UsageError(f"{what} was made with {_contrast(key, stored, wanted)}", hint)


def told_difference(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first such difference in words: "device mps, not with device cpu"; None where rows may be mixed."""
    key = difference(stored, wanted)
    return _contrast(key, stored, wanted) if key else None


def _contrast(key: str, stored: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    show = _SHOWN.get(key) or (lambda one: f"{key} {one[key]}")
    return f"{show(stored)}, not with {show(wanted)}"


_SHOWN: dict[str, Callable[[Mapping[str, str]], str]] = {
    "weights_sha256": lambda one: f"the model {one.get('model', '')} (weights {one['weights_sha256'][:12]})",
    "preprocessing": lambda one: f"the preprocessing {one['preprocessing']}",
    "version": lambda one: f"cloob {one['version']}",
    "decoding": lambda one: f"{one['decoding']} decoding",
    "pass_size": lambda one: f"passes of {one['pass_size']} image{'s' if one['pass_size'] != '1' else ''}",
}


def image_index_schema(column: str, metadata: dict[str, str], *, captions: bool = False) -> pyarrow.Schema:
    """The schema of an index of images: their names, their captions, the stamps of their files, and `metadata`."""
    import pyarrow as pa

    fields = [
        pa.field(column, pa.string(), nullable=False),
        *([pa.field(CAPTION, pa.string())] if captions else []),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64()),
        pa.field("sha256", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata=metadata)


def _stamps(table: pyarrow.Table) -> list[Stamp]:
    if not {*_STAMP} <= {*table.column_names}:
        return []
    columns = (table.column(name).to_pylist() for name in _STAMP)
    return list(map(Stamp._make, zip(*columns, strict=True)))
