"""Stored embeddings of `cloob embed` as patterns that count as known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cloob_cli.errors import DataError


def read_reference(path: Path, made: Mapping[str, str]) -> Tensor:
    """The rows of a .npy file, unit-norm float32 [N, D].

    Args:
        made: how the embeddings that they will be compared with are made, as in an index's metadata.

    Raises:
        DataError: not readable, not embeddings, or of other weights or another preprocessing than `made`.
    """
    from pyarrow import parquet

    try:
        rows = np.load(path, allow_pickle=False)
        with path.with_suffix(".parquet").open("rb") as stream:
            metadata = parquet.read_schema(stream).metadata or {}
    except (OSError, ValueError, EOFError) as problem:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: not embeddings: {problem}", "`cloob embed DIR -o emb.npy` makes them") from None
    for key in ("weights_sha256", "preprocessing"):
        if metadata.get(key.encode()) != made[key].encode():
            what = "another model" if key == "weights_sha256" else "another preprocessing"
            raise DataError(f"{path}: its embeddings are of {what}", "embed the reference images with this model")
    if rows.ndim != 2 or not len(rows) or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise DataError(f"{path}: not embeddings: {rows.dtype} {rows.shape}", "`cloob embed DIR -o emb.npy` makes them")
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32)), dim=1)
