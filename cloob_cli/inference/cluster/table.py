"""The result of a run on a cluster: one Parquet file with names and embeddings, and the list of failures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloob_cli.errors import CloobError, Failure, NothingFoundError
from cloob_cli.files import replacing_together
from cloob_cli.inference.outputs import write_failures

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_BYTES = 64 << 20  # of embeddings in a row group: what a reader holds of the file, and what is held here


def write_table(output: Path, listing: Path, tables: Iterable[pa.Table], metadata: dict[str, str], dtype: str) -> int:
    """Write the rows of an `ImageEmbedder` to `output`, and to `listing` those that have no embedding.

    Both files appear together at the end, or none does and earlier ones stay as they were.

    Args:
        metadata: of the file: how the embeddings were made, as far as that is known beforehand.
        dtype: "float32" or "float16".

    Returns:
        The number of embeddings.

    Raises:
        NothingFoundError: there is not one.
        CloobError: workers computed in different ways.
    """
    from pyarrow import parquet

    failures: list[Failure] = []
    writer: parquet.ParquetWriter | None = None
    rows = 0
    with replacing_together([output, listing]) as [temporary, failed], temporary.open("wb") as stream:
        try:
            for table in _groups(tables, failures, metadata, dtype):
                if writer is None:
                    # Embeddings do not become smaller, whatever is tried.
                    options = {"compression": {"path": "zstd", "embedding.list.element": "none"}}
                    writer = parquet.ParquetWriter(stream, table.schema, use_dictionary=False, **options)
                writer.write_table(table, row_group_size=len(table))
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
        if not rows:
            raise NothingFoundError("nothing to embed: not one input could be read")
        write_failures(failed, failures)
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
