"""Read a pickle of Haiku parameters without running any of it.

A pickle is a program: it names functions and calls them. This reader gives the handful of names that rebuild numpy
and jax arrays a meaning of its own (nothing of numpy, jax or haiku is ever looked up), refuses every other name
before anything is called, and knows only those opcodes that plain containers and arrays need. What a stand-in is
handed is checked too, so that an allowed name cannot be made to do anything but describe an array of numbers.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cloob_cli.errors import ConversionError, UnsafeCheckpointError
from cloob_cli.text_format import os_reason

_NUMBER_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_DEEPEST = 16  # containers within containers; real checkpoints have five

# Containers, numbers, strings and the memo; the opcodes that build objects are the reader's own methods.
_PLAIN_NAMES = (
    "PROTO FRAME MARK STOP POP EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL APPEND APPENDS"
)
_PLAIN_OPCODES = [getattr(pickle, name)[0] for name in _PLAIN_NAMES.split()]

# What damaged data makes the standard library's reader raise.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,  # UnicodeDecodeError among them
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    struct.error,
)


class _Refused(Exception):
    """Something that numbers in containers do not need."""


def read_haiku_pickle(path: Path) -> Any:
    """The contents of a Haiku checkpoint: dicts with string keys, lists, tuples, numbers, strings, numpy arrays.

    Raises:
        UnsafeCheckpointError: it asks for anything but numbers in containers; nothing of it was run.
        ConversionError: it is truncated or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _finish(_Reader(_Bounded(stream, path.stat().st_size)).load())
    except _Refused as problem:
        raise UnsafeCheckpointError(
            f"{path} is refused: it holds {problem}, which no checkpoint of numbers needs",
            "nothing of it was run; do not open it with another program either",
        ) from None
    except OSError as problem:
        raise ConversionError(f"{path}: {os_reason(problem)}") from None
    except _DAMAGE as problem:
        raise ConversionError(f"{path} is not a valid Haiku checkpoint ({type(problem).__name__}: {problem})") from None


class _Bounded:
    """A file that refuses to read more than it has left, so that a lying length reserves no memory."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise EOFError("the file is truncated")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(1024)
        self._left -= len(line)
        return line


class _NumberType:
    """A numpy dtype under construction: its byte order comes with its state."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or code not in _NUMBER_TYPES:
            raise _Refused(f"an array of type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        _version, byte_order, *structure = state[:5]  # structure: subtype, field names, fields
        if any(part is not None for part in structure):
            raise _Refused("an array of structures")
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
            raise _Refused("an array of objects")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array without a shape")
        if math.prod(shape) * number_type.dtype.itemsize != len(data):
            raise ValueError("an array whose shape does not fit its data")
        self.data = data
        order: Any = "F" if column_major is True else "C"
        self.array = np.frombuffer(data, number_type.dtype).reshape(shape, order=order)


class _Name:
    """The stand-in for a global that a pickle mentions. `function` None: it may be mentioned, but not called."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function = function


def _reconstruct(array_type: Any, shape: Any, type_code: Any) -> _Array:
    """numpy's `_reconstruct(ndarray, (0,), b"b")`: an empty array, to be filled by its state."""
    if array_type is not _NDARRAY:
        raise _Refused("an array of a foreign class")
    return _Array()


def _reconstruct_device_array(function: Any, arguments: Any, state: Any, aval_state: Any) -> _Array:
    """jax's `reconstruct_device_array`: a numpy array, wrapped."""
    if function is not _RECONSTRUCT:
        raise _Refused("a device array made by a foreign function")
    array = _reconstruct(*arguments)
    array.set_state(state)
    return array


def _flat_mapping(mapping: Any) -> dict[str, Any]:
    """haiku's `FlatMapping(dict)`: the dict."""
    if type(mapping) is not dict:
        raise _Refused("a FlatMapping of something that is not a dict")
    return mapping


_NDARRAY = _Name(None)
_RECONSTRUCT = _Name(_reconstruct)
_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(_NumberType),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # its name since numpy 2
    ("haiku._src.data_structures", "FlatMapping"): _Name(_flat_mapping),
    ("jax._src.device_array", "reconstruct_device_array"): _Name(_reconstruct_device_array),
}


# The reader written in Python: its memo is a dict (the C one's grows to whatever index a file names) and its table
# of opcodes can be cut down to what is needed.
_PythonUnpickler: Any = pickle._Unpickler


class _Opcodes(dict[int, Callable[..., None]]):
    def __missing__(self, opcode: int) -> Callable[..., None]:
        if opcode in _PythonUnpickler.dispatch:
            raise _Refused(f"the pickle instruction 0x{opcode:02x}")
        raise pickle.UnpicklingError(f"0x{opcode:02x} is no pickle instruction")


class _Reader(_PythonUnpickler):  # type: ignore[misc]
    dispatch = _Opcodes((opcode, _PythonUnpickler.dispatch[opcode]) for opcode in _PLAIN_OPCODES)

    def find_class(self, module: str, name: str) -> _Name:
        known = _NAMES.get((module, name))
        if known is None:
            raise _Refused(f"the name {f'{module}.{name}'[:100]!r}")
        return known

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        name = self.stack[-1]
        if not isinstance(name, _Name) or name.function is None or not isinstance(arguments, tuple):
            raise _Refused("a call of something that is not a function")
        self.stack[-1] = name.function(*arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if not isinstance(built, _NumberType | _Array):
            raise _Refused("a state for something that has none")
        built.set_state(state)

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._into_dict(list(zip(items[::2], items[1::2], strict=True)))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._into_dict([(key, value)])

    def _into_dict(self, items: list[tuple[Any, Any]]) -> None:
        # Only strings: hashing a tuple of tuples of tuples ... takes for ever.
        if type(self.stack[-1]) is not dict or not all(type(key) is str for key, _ in items):
            raise _Refused("a mapping whose keys are not strings")
        self.stack[-1].update(items)

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items


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
            raise _Refused("a function in the place of a number")
    return done[id(value)]


def _finish_array(value: _Array, done: dict[int, Any]) -> np.ndarray:
    if value.array is None:
        raise ValueError("an array without contents")
    if len(value.data) > 64 and done.setdefault(id(value.data), value) is not value:
        raise ValueError("two arrays share their data")
    return value.array
