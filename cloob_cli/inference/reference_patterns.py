"""Stored embeddings of `cloob embed` as patterns that count as known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cloob_cli.atomic_files import sha256_of
from cloob_cli.errors import DataError, InputError
from cloob_cli.inference.index.files import source_files
from cloob_cli.inference.index.given_embeddings import open_given
from cloob_cli.inference.index.reading import EMBED_ANEW

_SAME = "embed the reference images with this model, or choose theirs with --model"


def read_reference(path: Path, made: Mapping[str, str], width: int) -> tuple[Tensor, bool]:
    """The rows of an output of `cloob embed`, unit-norm float32 [N, D], and whether it says which model made them.

    Args:
        made: how the embeddings that they will be compared with are made, as in an index's metadata.
        width: D of these.

    Raises:
        DataError: not readable, not embeddings, or of other weights, another preprocessing or another width.
    """
    try:
        files = source_files(path)
        if files is None:
            raise InputError("it is neither a .npy file nor another output of `cloob embed`", EMBED_ANEW)
        index = open_given(files)
    except InputError as problem:
        raise DataError(f"{path}: not embeddings: {problem.message}", problem.hint) from None
    for key in ("weights_sha256", "preprocessing"):
        if index.metadata.get(key, made[key]) != made[key]:
            what = "another model" if key == "weights_sha256" else "another preprocessing"
            raise DataError(f"{path}: its embeddings are of {what}", _SAME)
    if index.rows.shape[1] != width:
        raise DataError(f"{path}: its embeddings have {index.rows.shape[1]} numbers, and this model's {width}", _SAME)
    rows = index.rows[:]
    if not np.isfinite(rows).all():
        raise DataError(f"{path}: not embeddings: numbers that are not finite", EMBED_ANEW)
    told = "weights_sha256" in index.metadata
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32)), dim=1), told


def reference_sha256(path: Path) -> str:
    """A hash of the rows that `read_reference` reads, by which the same reference is known again.

    Raises:
        InputError: they cannot be read.
    """
    files = source_files(path)
    if files and files.form == "lance":
        return hashlib.sha256(open_given(files).rows[:].tobytes()).hexdigest()
    if files and len(files.parts) > 1:
        hashes = "".join(sha256_of(part.embeddings) for part in files.parts)
        return hashlib.sha256(hashes.encode()).hexdigest()
    return sha256_of(files.embeddings if files else path)
