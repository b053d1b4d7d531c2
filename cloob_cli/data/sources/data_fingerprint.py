"""Fingerprint of a set of pairs, small enough to keep in checkpoints: a run detects that its data changed.

A source is a list of parts in the order in which it numbers its pairs. A part's digest covers names, places, lengths
and captions as far as the source has them without opening every image; it does not cover pixels. Where the files lie
and what their folders are called makes no difference.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloob_cli.text_format import counted


@dataclass(frozen=True)
class Part:
    """A file of a source, or all images of a folder or table together.

    Attributes:
        name: for people; two parts are equal whatever they are called.
        pairs: how many.
        size: bytes of the file, or of all images.
        digest: of what else is known.
    """

    name: str
    pairs: int
    size: int
    digest: str

    @property
    def contents(self) -> tuple[int, int, str]:
        return self.pairs, self.size, self.digest


def to_json(parts: Sequence[Part]) -> list[dict[str, Any]]:
    return [asdict(part) for part in parts]


def from_json(stored: Sequence[dict[str, Any]]) -> list[Part]:
    """The inverse of `to_json`. Raises TypeError where the file was made by something else."""
    return [Part(**part) for part in stored]


def digest_of(parts: Sequence[Part]) -> str:
    """One text for all parts in their order, whatever they are called."""
    return digest(repr(part.contents) for part in parts)


def changes(before: Sequence[Part], now: Sequence[Part]) -> list[str]:
    """Describe how two lists of parts differ, a phrase each; none where pair i of one is pair i of the other."""
    if [part.contents for part in before] == [part.contents for part in now]:
        return []
    kept = Counter(part.contents for part in before) & Counter(part.contents for part in now)
    gone, new = ({part.name: part for part in _without(parts, kept.copy())} for parts in (before, now))
    found = []
    for name, part in gone.items():
        other = new.get(name)
        if other is None:
            found.append(f"{name} ({counted(part.pairs, 'pair')}) is gone")
        elif other.pairs != part.pairs:
            found.append(f"{name} had {counted(part.pairs, 'pair')} and has {other.pairs:,}")
        else:
            found.append(f"{name} has other contents")
    found += [f"{name} ({counted(part.pairs, 'pair')}) is new" for name, part in new.items() if name not in gone]
    return found or ["its files come in another order"]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path from the folder that all of them share, with `/`."""
    shared = shared_folder([str(path) for path in paths])
    return [os.path.relpath(path, shared).replace(os.sep, "/") if shared else path.as_posix() for path in paths]


def shared_folder(paths: Sequence[str]) -> str:
    """The innermost folder that holds all these files, or nothing where no folder does."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute and relative ones, or several drives
        return ""


def digest(pieces: Iterable[str | bytes]) -> str:
    """16 hexadecimal digits of all pieces in their order; ("ab", "c") is not ("a", "bc")."""
    whole = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        data = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()


def _without(parts: Sequence[Part], kept: Counter[tuple[int, int, str]]) -> list[Part]:
    rest = []
    for part in parts:
        if kept[part.contents] > 0:
            kept[part.contents] -= 1
        else:
            rest.append(part)
    return rest
