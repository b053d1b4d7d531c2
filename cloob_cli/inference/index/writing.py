"""Write the rows of an index in the form that its files have: .npy and .parquet, clip-retrieval's layout, or Lance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cloob_cli.atomic_files import replacing, replacing_folder, replacing_together
from cloob_cli.errors import Failure, NothingFoundError
from cloob_cli.inference.index.files import IndexFiles
from cloob_cli.inference.row_writers import NpyRows, parquet_rows, write_failures

if TYPE_CHECKING:
    import pyarrow

EMBEDDING = "embedding"  # the column of a Lance table


class Chunk(NamedTuple):
    """Some rows: embeddings [n, D], what the index says of each, and the embeddings of captions [n, D]."""

    embeddings: np.ndarray
    described: list[dict[str, Any]]
    captions: np.ndarray | None = None


def write_chunks(
    files: IndexFiles,
    schema: pyarrow.Schema,
    chunks: Iterable[Chunk],
    failures: Sequence[Failure],
    when_read: Callable[[], None] = lambda: None,
) -> int:
    """Write all rows, and replace what was there before; returns their number.

    The files appear together in the end, or none does. Of a Lance table the failures' file comes a moment later.

    Args:
        schema: of the index, without embeddings.
        chunks: all of them have captions, or none has.
        failures: looked at when all chunks were taken.
        when_read: called when all chunks were taken, before files are replaced.

    Raises:
        NothingFoundError: there is not one row.
    """
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        raise NothingFoundError("nothing to embed: not one input could be read")
    chunks = chain([first], chunks)
    if files.form == "lance":
        count = _write_lance(files, schema, first, chunks, when_read)
        with replacing(files.failures) as listing:
            write_failures(listing, failures)
        return count
    # A folder for captions is made only where there are some.
    has_captions = first.captions is not None
    beside = [files.beside] if files.beside and (has_captions or files.beside.exists()) else []
    targets = [files.embeddings, files.index, *beside, files.failures]
    with replacing_together(targets) as temporaries:
        npy, parquet, *further, listing = temporaries
        with ExitStack() as opened:
            index = opened.enter_context(parquet_rows(parquet, schema))
            rows = _npy_rows(opened, npy, first.embeddings)
            captions = _npy_rows(opened, further[0], first.captions) if first.captions is not None else None
            for chunk in chunks:
                rows.write(chunk.embeddings)
                index.write(chunk.described)
                if captions and chunk.captions is not None:
                    captions.write(chunk.captions)
            for array in filter(None, [rows, captions]):
                array.finish()
        if further and not has_captions:
            further[0].unlink()
        write_failures(listing, failures)
        when_read()
    if beside and not has_captions:
        _remove_if_empty(beside[0].parent)
    return rows.count


def _npy_rows(opened: ExitStack, path: Path, like: np.ndarray) -> NpyRows:
    return NpyRows(opened.enter_context(path.open("wb")), like.shape[1], like.dtype)


def _write_lance(
    files: IndexFiles,
    schema: pyarrow.Schema,
    first: Chunk,
    chunks: Iterable[Chunk],
    when_read: Callable[[], None],
) -> int:
    import pyarrow as pa

    from cloob_cli.inference.lance_tables import fill_table, vector_column, vector_field

    count = 0
    schema = schema.insert(1, vector_field(first.embeddings.shape[1], first.embeddings.dtype, EMBEDDING))

    def batches() -> Iterator[pyarrow.RecordBatch]:
        nonlocal count
        for chunk in chunks:
            count += len(chunk.embeddings)
            described = {name: [row.get(name) for row in chunk.described] for name in schema.names}
            columns = [
                vector_column(chunk.embeddings)
                if field.name == EMBEDDING
                else pa.array(described[field.name], field.type)
                for field in schema
            ]
            yield pa.record_batch(columns, schema=schema)

    with replacing_folder(Path(os.path.realpath(files.embeddings))) as folder:
        fill_table(folder, schema, batches())
        when_read()
    return count


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass
