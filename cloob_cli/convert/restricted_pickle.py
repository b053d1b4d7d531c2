"""A reader of pickles that runs nothing, for the two forms of checkpoints that torch's own restricted reader refuses.

A pickle is a program: it names functions and calls them. This reader knows only those instructions that plain
containers and numbers need; a subclass gives the handful of names that its files mention a meaning of its own. Nothing
is ever imported or looked up, and every other name or instruction is refused before anything is called.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import IO, Any

# Containers, numbers, strings and the memo; the opcodes that build objects are the reader's own methods.
_PLAIN_NAMES = (
    "PROTO FRAME MARK STOP POP EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL APPEND APPENDS"
)
_PLAIN_OPCODES = [getattr(pickle, name)[0] for name in _PLAIN_NAMES.split()]

# What damaged data makes the standard library's reader raise.
DAMAGE = (
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


class RefusedError(Exception):
    """Something that numbers in containers do not need."""


class Bounded:
    """A file that refuses to read more than it has left, so that a lying length reserves no memory."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
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


class Name:
    """The stand-in for a global that a pickle mentions. `function` None: it may be mentioned, but not called."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function = function


# The reader written in Python: its memo is a dict (the C one's grows to whatever index a file names) and its table
# of opcodes can be cut down to what is needed.
_PythonUnpickler: Any = pickle._Unpickler


class Opcodes(dict[int, Callable[..., None]]):
    """The methods for the instructions that are known; every other one is refused."""

    def __missing__(self, opcode: int) -> Callable[..., None]:
        if opcode in _PythonUnpickler.dispatch:
            raise RefusedError(f"the pickle instruction 0x{opcode:02x}")
        raise pickle.UnpicklingError(f"0x{opcode:02x} is no pickle instruction")


class RestrictedReader(_PythonUnpickler):  # type: ignore[misc]
    """Reads a `Bounded` file; a subclass says which names it knows (`known_name`) and what takes a state (`build`)."""

    dispatch = Opcodes((opcode, _PythonUnpickler.dispatch[opcode]) for opcode in _PLAIN_OPCODES)

    def known_name(self, module: str, name: str) -> Name | None:
        """The meaning of a global, or None where it has none."""
        raise NotImplementedError

    def build(self, built: Any, state: Any) -> None:
        """Give `built` its state; raises RefusedError where it takes none."""
        raise NotImplementedError

    def find_class(self, module: str, name: str) -> Name:
        meaning = self.known_name(module, name)
        if meaning is None:
            raise RefusedError(f"the name {f'{module}.{name}'[:100]!r}")
        return meaning

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        name = self.stack[-1]
        if not isinstance(name, Name) or name.function is None or not isinstance(arguments, tuple):
            raise RefusedError("a call of something that is not a function")
        self.stack[-1] = name.function(*arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._into_dict(list(zip(items[::2], items[1::2], strict=True)))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._into_dict([(key, value)])

    def _into_dict(self, items: list[tuple[Any, Any]]) -> None:
        # Only strings: hashing a tuple of tuples of tuples ... takes for ever.
        if type(self.stack[-1]) is not dict or not all(type(key) is str for key, _ in items):
            raise RefusedError("a mapping whose keys are not strings")
        self.stack[-1].update(items)

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
