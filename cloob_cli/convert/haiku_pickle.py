"""Read a pickle of Haiku parameters without running any of it (`restricted_pickle`).

The names that rebuild numpy and jax arrays have a meaning of their own here; nothing of numpy, jax or haiku is ever
looked up. What a stand-in is handed is checked too, so that an allowed name cannot be made to do anything but describe
an array of numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from cloob_cli.convert.restricted_pickle import DAMAGE, Bounded, Name, RefusedError, RestrictedReader
from cloob_cli.errors import ConversionError, UnsafeCheckpointError
from cloob_cli.text_format import os_reason

_NUMBER_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
# No pickle of arrays begins like this: instructions that need a stack first, with whose letters tables and texts begin
# ("path,...", "image,..."), "PAR1" of Parquet files, the head of TIFF files.
_NO_START = (*(bytes([letter]) for letter in b"abdeilopqrstu012PQR"), b"II*\0")
_DEEPEST = 16  # containers within containers; real checkpoints have five


def read_haiku_pickle(path: Path) -> Any:
    """The contents of a Haiku checkpoint: dicts with string keys, lists, tuples, numbers, strings, numpy arrays.

    Raises:
        UnsafeCheckpointError: it asks for anything but numbers in containers; nothing of it was run.
        ConversionError: it is truncated or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            # Protocols with instructions above 0x80, with which PNG and JPEG files begin, begin with 0x80 themselves.
            if not start or start[0] > 0x80 or start.startswith(_NO_START):
                raise _no_checkpoint(path)
            stream.seek(0)
            return _finish(_Reader(Bounded(stream, path.stat().st_size)).load())
    except RefusedError as problem:
        raise UnsafeCheckpointError(
            f"{path} is refused: it holds {problem}, which no checkpoint of numbers needs",
            "nothing of it was run; do not open it with another program either",
        ) from None
    except OSError as problem:
        raise ConversionError(f"{path}: {os_reason(problem)}") from None
    except DAMAGE as problem:
        if start[0] != 0x80:  # with which pickles begin, but for those of ancient form
            raise _no_checkpoint(path) from None
        raise ConversionError(f"{path} is not a valid Haiku checkpoint ({type(problem).__name__}: {problem})") from None


def _no_checkpoint(path: Path) -> ConversionError:
    return ConversionError(
        f"{path} is not a checkpoint: neither safetensors nor a file of PyTorch nor a pickle of Haiku",
        "`cloob zoo convert --help` names the formats",
    )


class _NumberType:
    """A numpy dtype under construction: its byte order comes with its state."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or code not in _NUMBER_TYPES:
            raise RefusedError(f"an array of type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        _version, byte_order, *structure = state[:5]  # structure: subtype, field names, fields
        if any(part is not None for part in structure):
            raise RefusedError("an array of structures")
        orders: dict[str, Any] = {"<": "<", ">": ">", "|": "="}
        self.dtype = self.dtype.newbyteorder(orders[byte_order])


class _Array:
    """A numpy array under construction: all of it comes with its state."""

    __slots__ = ("array", "data")

    def __init__(self) -> None:
        self.array: np.ndarray | None = None
        self.data = b""

    def set_state(self, state: Any) -> None:
        _version, shape, number_type, column_major, data = state
        if not isinstance(number_type, _NumberType) or not isinstance(data, bytes):
            raise RefusedError("an array of objects")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array without a shape")
        if math.prod(shape) * number_type.dtype.itemsize != len(data):
            raise ValueError("an array whose shape does not fit its data")
        self.data = data
        order: Any = "F" if column_major is True else "C"
        self.array = np.frombuffer(data, number_type.dtype).reshape(shape, order=order)


def _reconstruct(array_type: Any, shape: Any, type_code: Any) -> _Array:
    """numpy's `_reconstruct(ndarray, (0,), b"b")`: an empty array, to be filled by its state."""
    if array_type is not _NDARRAY:
        raise RefusedError("an array of a foreign class")
    return _Array()


def _reconstruct_device_array(function: Any, arguments: Any, state: Any, aval_state: Any) -> _Array:
    """jax's `reconstruct_device_array`: a numpy array, wrapped."""
    if function is not _RECONSTRUCT:
        raise RefusedError("a device array made by a foreign function")
    array = _reconstruct(*arguments)
    array.set_state(state)
    return array


def _flat_mapping(mapping: Any) -> dict[str, Any]:
    """haiku's `FlatMapping(dict)`: the dict."""
    if type(mapping) is not dict:
        raise RefusedError("a FlatMapping of something that is not a dict")
    return mapping


_NDARRAY = Name(None)
_RECONSTRUCT = Name(_reconstruct)
_NAMES: dict[tuple[str, str], Name] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Name(_NumberType),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # its name since numpy 2
    ("haiku._src.data_structures", "FlatMapping"): Name(_flat_mapping),
    ("jax._src.device_array", "reconstruct_device_array"): Name(_reconstruct_device_array),
}


class _Reader(RestrictedReader):
    def known_name(self, module: str, name: str) -> Name | None:
        return _NAMES.get((module, name))

    def build(self, built: Any, state: Any) -> None:
        if not isinstance(built, _NumberType | _Array):
            raise RefusedError("a state for something that has none")
        built.set_state(state)


def _finish(value: Any, depth: int = 0, done: dict[int, Any] | None = None) -> Any:
    """The contents with finished arrays in the places of those under construction.

    A container that occurs again is walked once, and arrays cannot share their data: a small file must not
    describe a huge model.
    """
    done = {} if done is None else done
    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    if isinstance(value, _Array):
        return _finish_array(value, done)
    if id(value) not in done:
        if depth == _DEEPEST:
            raise ValueError("containers are nested too deeply")
        if type(value) is dict:
            done[id(value)] = {key: _finish(inner, depth + 1, done) for key, inner in value.items()}
        elif type(value) in (list, tuple):
            done[id(value)] = type(value)(_finish(inner, depth + 1, done) for inner in value)
        else:
            raise RefusedError("a function in the place of a number")
    return done[id(value)]


def _finish_array(value: _Array, done: dict[int, Any]) -> np.ndarray:
    if value.array is None:
        raise ValueError("an array without contents")
    if len(value.data) > 64 and done.setdefault(id(value.data), value) is not value:
        raise ValueError("two arrays share their data")
    return value.array
