"""Labels as names of folders that every file system takes, different for different labels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath

_LONGEST = 120  # bytes of a name: file systems take 255, and people read less
_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows


def folder_names(labels: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], PurePath]:
    """A relative folder for each label, which is a path of names from a root ("animal", "bird"): usually of one.

    Two names that would share a folder, also on file systems that do not tell capital letters, get numbers.
    """
    folders: dict[tuple[str, ...], PurePath] = {}
    taken: set[tuple[PurePath, str]] = set()
    for label in labels:
        for depth in range(1, len(label) + 1):
            if label[:depth] in folders:
                continue
            parent = folders[label[: depth - 1]] if depth > 1 else PurePath()
            name = base = folder_name(label[depth - 1])
            number = 1
            while (parent, _key(name)) in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add((parent, _key(name)))
            folders[label[:depth]] = parent / name
    return folders


def folder_name(name: str) -> str:
    """`name` without what file systems forbid, hide or read as a path; never empty."""
    text = unicodedata.normalize("NFC", name)
    text = "".join("_" if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} else c for c in text)
    text = _FORBIDDEN.sub("_", text).strip()
    text = text.encode()[:_LONGEST].decode(errors="ignore").rstrip(". ")
    if text.startswith("."):  # hidden: no later search would find it
        text = "_" + text[1:]
    if _RESERVED.fullmatch(text):
        text += "_"
    return text or "_"


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
