"""Paths as text that every format can hold, and back."""

from __future__ import annotations

import os
import re
from pathlib import Path

_BEFORE_ESCAPE = re.compile(r"(\\+)(?=[\udc80-\udcff]|x[89a-f][0-9a-f])")
_ESCAPE = re.compile(r"(\\+)x([89a-f][0-9a-f])")


def path_text(path: Path) -> str:
    """A path as text that every format can hold, different for different paths.

    Bytes of a name that are not UTF-8 become `\\xNN`. Backslashes before such an escape, or before what looks like one
    in the name itself, are doubled: an odd number of them marks a byte.
    """
    if os.name != "posix":
        return str(path).encode("utf-8", "backslashreplace").decode()
    text = os.fspath(path)
    if text.isascii() and "\\" not in text:  # most paths, by far
        return text
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    text = _BEFORE_ESCAPE.sub(r"\1\1", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_of(text: str) -> Path:
    """The path that `path_text` made into `text`."""
    if os.name != "posix":
        return Path(text)

    def restore(found: re.Match[str]) -> str:
        backslashes, digits = found[1], found[2]
        half = "\\" * (len(backslashes) // 2)
        return half + (chr(0xDC00 + int(digits, 16)) if len(backslashes) % 2 else f"x{digits}")

    # A byte is a lone surrogate until the whole name becomes bytes, for several of them may make one character.
    return Path(os.fsdecode(_ESCAPE.sub(restore, text).encode("utf-8", "surrogateescape")))
