"""Embeddings that a command was given to read: an output of `cloob embed`, or a folder that clip-retrieval wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cloob_cli.errors import InputError
from cloob_cli.inference.index.files import IndexFiles
from cloob_cli.inference.index.layout_parts import PARTS_HINT
from cloob_cli.inference.index.reading import EMBED_ANEW, OpenIndex, holds_texts, open_index
from cloob_cli.inference.index.row_parts import RowParts

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow

_MODEL = {"weights_sha256": "model", "preprocessing": "preprocessing"}  # what has to agree where rows are compared
_ONE_MODEL = "only embeddings of one model belong into one folder"


def open_given(files: IndexFiles) -> OpenIndex:
    """Open embeddings to look at some of their rows, as `open_index` does; all parts of them, as one.

    Raises:
        InputError: a file is missing, is damaged, or does not belong to the others; or there is no row,
            or rows of texts or of something else than files.
    """
    try:
        if files.parts:
            index = _open_parts(files)
        else:
            index = open_index(files)
            names = _paths(index.names, files) if len(index.rows) else index.names
            index = replace(index, names=names)
    except InputError as problem:
        if holds_texts(files):
            raise InputError(
                f"{files.embeddings} holds embeddings of texts, not of images",
                "`cloob embed DIR -o FILE` makes those of images",
            ) from None
        raise InputError(problem.message, problem.hint if files.parts else EMBED_ANEW) from None
    if not len(index.rows):
        raise InputError(f"{files.embeddings} holds no rows", EMBED_ANEW)
    return index


def _open_parts(files: IndexFiles) -> OpenIndex:
    import pyarrow as pa

    opened: list[OpenIndex] = []
    names: list[pyarrow.Array] = []
    for part in files.parts:
        one = replace(files, embeddings=part.embeddings, index=part.metadata, parts=())
        try:
            index = open_index(one)
        except InputError as problem:
            raise InputError(problem.message, PARTS_HINT) from None
        if len(index.rows):  # what an empty part says of width and types is no matter
            _check_like(part.embeddings, index, opened)
            names += _paths(index.names, one).chunks
            opened.append(index)
    if not opened:
        raise InputError(f"{files.embeddings.parent} holds no rows", PARTS_HINT)
    # Where one part does not say which model made it, nothing says that the parts belong together.
    metadata = opened[0].metadata if all("weights_sha256" in index.metadata for index in opened) else {}
    arrays = [index.rows[:] for index in opened]
    # Of several parts also where all rows are in one: the first part's file is not known to be the one that has them.
    rows = arrays[0] if len(files.parts) == 1 else RowParts(arrays)
    return OpenIndex(pa.chunked_array(names, pa.large_string()), rows, metadata)


def _check_like(path: Path, index: OpenIndex, before: list[OpenIndex]) -> None:
    """Refuse a part of another model than those before it."""
    for other in before:
        width, wanted = index.rows.shape[1], other.rows.shape[1]
        if width != wanted:
            raise InputError(f"{path} has {width} numbers a row, and the parts before it have {wanted}", _ONE_MODEL)
        for key, what in _MODEL.items():
            own = index.metadata.get(key)
            if own and other.metadata.get(key, own) != own:
                raise InputError(f"{path} was made with another {what} than the parts before it", _ONE_MODEL)


def _paths(column: pyarrow.ChunkedArray, files: IndexFiles) -> pyarrow.ChunkedArray:
    """The paths of images, in the type that they have in all parts.

    Raises:
        InputError: they are no text, or some are missing.
    """
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{files.index} has {kind} in its column {files.column}, no paths", PARTS_HINT)
    if column.null_count:
        raise InputError(f"{files.index} lacks {column.null_count:,} of its paths", PARTS_HINT)
    return column.cast(pa.large_string())
