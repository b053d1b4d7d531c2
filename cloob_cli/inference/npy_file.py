"""Open a .npy file of embeddings, and say in one line what is wrong with another one."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from cloob_cli.errors import InputError
from cloob_cli.text_format import counted

_MAGIC = b"\x93NUMPY"


def open_rows(path: Path, hint: str) -> np.ndarray:
    """The rows of a .npy file, floats [N, D], mapped from the file. Nothing is unpickled.

    Args:
        hint: what to do about a file that is no good.

    Raises:
        FileNotFoundError: it is not there.
        InputError: it cannot be read, is cut short or damaged, or holds something else.
    """
    try:
        with path.open("rb") as stream:
            shape, dtype = _header(path, stream, hint)
            start, size = stream.tell(), stream.seek(0, 2)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}", hint) from None
    if len(shape) != 2 or dtype.kind != "f":
        what = "Python objects" if dtype.hasobject else f"{dtype} {list(shape)}"
        raise InputError(f"{path} holds {what}, no embeddings", hint)
    rows, width = shape
    if size - start < rows * width * dtype.itemsize:
        there = (size - start) // max(1, width * dtype.itemsize)
        raise InputError(f"{path} is cut short: it has {there:,} of {counted(rows, 'row')}", hint)
    if not rows * width:
        return np.empty(shape, dtype)
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def told_shape(path: Path) -> tuple[int, ...] | None:
    """The shape in the header of a .npy file, whose data may be cut short; None where the header is damaged.

    Raises:
        OSError: the file cannot be read.
        InputError: it is no .npy file, or holds Python objects.
    """
    with path.open("rb") as stream:
        try:
            shape, dtype = _header(path, stream, "")
        except InputError:
            stream.seek(0)
            begin = stream.read(len(_MAGIC))
            # Zeros are what some file systems leave of a file after a loss of power.
            if _MAGIC.startswith(begin) or not any(begin):
                return None
            raise
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects, no embeddings")
    return shape


def _header(path: Path, stream: BinaryIO, hint: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, in front of whose data the stream then is."""
    begin = stream.read(len(_MAGIC))
    if begin != _MAGIC:
        what = "is cut short" if _MAGIC.startswith(begin) else "is not a .npy file"
        raise InputError(f"{path} {what}", hint)
    stream.seek(0)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception:  # whatever NumPy says of a damaged header, which is a Python literal
        raise InputError(f"{path} is damaged: its header cannot be read", hint) from None
    return shape, dtype
