"""LanceDB, an optional package: whether it is there, and tables with a column `vector`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloob_cli.errors import MissingExtraError

if TYPE_CHECKING:
    import pyarrow

VECTOR = "vector"


def has_lancedb() -> bool:
    """True where LanceDB is installed; it is not imported, which takes a second."""
    return importlib.util.find_spec("lancedb") is not None


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


def vector_field(width: int, dtype: np.dtype) -> pyarrow.Field:
    """The field of a table whose column `vector` holds `width` numbers a row."""
    import pyarrow as pa

    return pa.field(VECTOR, pa.list_(pa.from_numpy_dtype(dtype), width), nullable=False)


def vector_column(rows: np.ndarray) -> pyarrow.Array:
    """Rows [n, D] as a column of lists of fixed size."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def write_table(folder: Path, name: str, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> Any:
    """Write the table `folder/name.lance`, which must not exist, a batch at a time; returns it open."""
    import pyarrow as pa

    reader = pa.RecordBatchReader.from_batches(schema, batches)
    return connect(folder).create_table(name, reader, schema=schema)
