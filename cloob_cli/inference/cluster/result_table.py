"""The result of a run on a cluster: a Parquet file or a Lance table with names and embeddings, and the failures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloob_cli.atomic_files import replacing, replacing_folder, replacing_together
from cloob_cli.errors import CloobError, Failure, NothingFoundError
from cloob_cli.inference.index.files import LANCE
from cloob_cli.inference.lance_tables import fill_table
from cloob_cli.inference.row_writers import write_failures

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_BYTES = 64 << 20  # of embeddings in a row group: what a reader holds of the file, and what is held here


def write_table(output: Path, listing: Path, tables: Iterable[pa.Table], metadata: dict[str, str], dtype: str) -> int:
    """Write the rows of an `ImageEmbedder` to `output`, and to `listing` those that have no embedding.

    Both appear together at the end (of a Lance table the list comes a moment later), or none does and earlier ones
    stay as they were.

    Args:
        output: a file NAME.parquet, or a Lance table NAME.lance.
        metadata: of the schema: how the embeddings were made, as far as that is known beforehand.
        dtype: "float32" or "float16".

    Returns:
        The number of embeddings.

    Raises:
        NothingFoundError: there is not one.
        CloobError: workers computed in different ways.
    """
    failures: list[Failure] = []
    groups = _groups(tables, failures, metadata, dtype)
    first = next(groups, None)
    if first is None:
        raise NothingFoundError("nothing to embed: not one input could be read")
    write = _write_lance if output.suffix.lower() == LANCE else _write_parquet
    return write(output, listing, first.schema, chain([first], groups), failures)


def _write_parquet(
    output: Path, listing: Path, schema: pa.Schema, groups: Iterable[pa.Table], failures: list[Failure]
) -> int:
    from pyarrow import parquet

    # Embeddings do not become smaller, whatever is tried.
    options = {"compression": {"path": "zstd", "embedding.list.element": "none"}, "use_dictionary": False}
    rows = 0
    with replacing_together([output, listing]) as [temporary, failed]:
        with temporary.open("wb") as stream, parquet.ParquetWriter(stream, schema, **options) as writer:
            for table in groups:
                writer.write_table(table, row_group_size=len(table))
                rows += len(table)
        write_failures(failed, failures)
    return rows


def _write_lance(
    output: Path, listing: Path, schema: pa.Schema, groups: Iterable[pa.Table], failures: list[Failure]
) -> int:
    rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for table in groups:
            rows += len(table)
            yield from table.to_batches()

    with replacing_folder(Path(os.path.realpath(output))) as folder:
        fill_table(folder, schema, batches())
    with replacing(listing) as temporary:
        write_failures(temporary, failures)
    return rows


def _groups(
    tables: Iterable[pa.Table], failures: list[Failure], metadata: dict[str, str], dtype: str
) -> Iterator[pa.Table]:
    """The embeddings as tables of the size of a row group, with all metadata."""
    from pyarrow import compute

    made_with: str | None = None
    held: list[pa.Table] = []
    for table in tables:
        failures += failures_of(table)
        good = table.filter(compute.is_null(table["reason"]))
        if not len(good):
            continue
        for found in compute.unique(good["made_with"]).to_pylist():
            made_with = made_with or found
            if found != made_with:
                raise CloobError(
                    f"machines compute in different ways: {made_with}, {found}",
                    "name what all of them have: --device cpu, --precision fp32",
                )
        held.append(_rounded(good, dtype))
        if sum(part["embedding"].nbytes for part in held) >= _GROUP_BYTES:
            yield _whole(held, metadata, made_with)
            held = []
    if held:
        yield _whole(held, metadata, made_with)


def failures_of(table: pa.Table) -> list[Failure]:
    """The images of an `ImageEmbedder`'s table that have no embedding."""
    pairs = zip(table["path"].to_pylist(), table["reason"].to_pylist(), strict=True)
    return [Failure(name, reason) for name, reason in pairs if reason is not None]


def _rounded(table: pa.Table, dtype: str) -> pa.Table:
    import pyarrow as pa

    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.dtype(dtype), copy=False)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    fields = [pa.field("path", pa.string(), nullable=False), pa.field("embedding", rows.type, nullable=False)]
    return pa.table([table["path"], rows], schema=pa.schema(fields))


def _whole(parts: list[pa.Table], metadata: dict[str, str], made_with: str | None) -> pa.Table:
    import pyarrow as pa

    table = pa.concat_tables(parts).combine_chunks()
    return table.replace_schema_metadata({**metadata, **json.loads(made_with or "{}")})
