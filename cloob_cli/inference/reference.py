"""Stored embeddings of `cloob embed` as patterns that count as known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cloob_cli.errors import DataError, InputError
from cloob_cli.files import sha256_of
from cloob_cli.inference.index.files import source_files
from cloob_cli.inference.index.stored import EMBED_ANEW, open_embeddings


def read_reference(path: Path, made: Mapping[str, str]) -> Tensor:
    """The rows of an output of `cloob embed`, unit-norm float32 [N, D].

    Args:
        made: how the embeddings that they will be compared with are made, as in an index's metadata.

    Raises:
        DataError: not readable, not embeddings, or of other weights or another preprocessing than `made`.
    """
    files = source_files(path)
    try:
        if files is None:
            raise InputError("it is neither a .npy file nor another output of `cloob embed`")
        index = open_embeddings(files)
    except InputError as problem:
        raise DataError(f"{path}: not embeddings: {problem.message}", EMBED_ANEW) from None
    for key in ("weights_sha256", "preprocessing"):
        if index.metadata.get(key) != made[key]:
            what = "another model" if key == "weights_sha256" else "another preprocessing"
            raise DataError(f"{path}: its embeddings are of {what}", "embed the reference images with this model")
    if not len(index.rows) or not np.isfinite(index.rows).all():
        raise DataError(f"{path}: not embeddings: no rows, or numbers that are not finite", EMBED_ANEW)
    return torch.nn.functional.normalize(torch.from_numpy(index.rows.astype(np.float32)), dim=1)


def reference_sha256(path: Path) -> str:
    """A hash of the rows that `read_reference` reads, by which the same reference is known again.

    Raises:
        InputError: they cannot be read.
    """
    files = source_files(path)
    if files and files.form == "lance":
        return hashlib.sha256(open_embeddings(files).rows.tobytes()).hexdigest()
    return sha256_of(files.embeddings if files else path)
