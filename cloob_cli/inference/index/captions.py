"""Captions of images, NAME.txt beside NAME.jpg, in an index that keeps them with their embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloob_cli.errors import Failure
from cloob_cli.inference.index.file_stamp import Stamp
from cloob_cli.inference.index.journal import Journal, read_journal, read_part
from cloob_cli.inference.index.known_rows import Kept, KnownRows
from cloob_cli.inference.index.reading import CAPTION, StoredIndex
from cloob_cli.inference.index.writing import Chunk

if TYPE_CHECKING:
    from cloob_cli.inference.embed import EmbeddedBatch

_LONGEST = 1 << 20  # bytes of a file that are read: what is longer is no caption
# What may be wrong with the files of captions, as it is told.
_TOO_LONG = "captions of more than 1 MiB are left out"
_BINARY = "captions with null characters, which are not UTF-8 text, are left out"
_UNREADABLE = "captions that cannot be read are left out"
_REPLACED = "captions are not UTF-8; the invalid bytes in them are replaced"

Faults = dict[str, list[Path]]


class Captions:
    """The captions of images, by the images' names in the index, and the rows that are known of captions.

    `made_with` says how the rows of killed runs were made, where there are some, and `faults` in a sentence each what
    is wrong with some files.
    """

    def __init__(
        self, by_name: dict[str, str], known: KnownRows, made_with: dict[str, str] | None, faults: Faults
    ) -> None:
        self.by_name, self.known, self.made_with, self.faults = by_name, known, made_with, faults

    @property
    def new(self) -> list[str]:
        """The captions that no row is known of, each once."""
        return [text for text in dict.fromkeys(self.by_name.values()) if text not in self.known.by_name]

    def are_those_of(self, stored: StoredIndex) -> bool:
        """True where an index has just these captions, and their rows."""
        wanted = [self.by_name.get(name) for name in stored.names]
        return wanted == (stored.captions or [None] * len(stored.names))

    def describe(self, rows: Sequence[Kept], embeddings: np.ndarray, described: list[dict[str, Any]]) -> Chunk:
        """Rows of images with their captions; a row of zeros, near to nothing, stands for a caption that is missing."""
        texts = [self.by_name.get(row.name) for row in rows]
        captions = np.zeros_like(embeddings)
        places = [place for place, text in enumerate(texts) if text is not None]
        if places:
            captions[places] = self.known.gather([self.known.by_name[text] for text in texts if text is not None])
        return Chunk(embeddings, [{**row, CAPTION: text} for row, text in zip(described, texts, strict=True)], captions)


@contextmanager
def open_captions(
    paths: Iterable[Path | Failure],
    name_of: Callable[[Path], str],
    stored: StoredIndex | None,
    journal: Path,
    fits: Callable[[dict[str, str]], bool],
) -> Iterator[Captions]:
    """The captions beside images, with the rows of an index and of killed runs; in the end all files are let go.

    Args:
        journal: the folder of rows of captions that runs left which were killed.
        fits: as for `read_journal`.
    """
    known = KnownRows()
    try:
        if stored and stored.caption_rows is not None:
            numbers = [number for number, text in enumerate(stored.captions) if text is not None]
            texts = [stored.captions[number] or "" for number in numbers]
            known.add(texts, [Stamp(0, None, "")] * len(texts), _Selected(stored.caption_rows, np.array(numbers)))
            stored.caption_rows = None
        made_with = read_journal(journal, fits, known)
        faults: Faults = {}
        yield Captions(dict(_beside(paths, name_of, faults)), known, made_with, faults)
    finally:
        known.close()


def record_captions(captions: Captions, batches: Generator[EmbeddedBatch], journal: Journal) -> int:
    """Append embedded captions to a journal, and add their rows; returns how many are longer than the context."""
    cut = 0
    with journal, closing(batches):
        for batch in batches:
            cut += batch.cut
            if batch.embeddings is not None:
                stamps = [Stamp(0, None, "")] * len(batch.names)
                journal.append(batch.names, stamps, batch.embeddings.numpy())
    if journal.path:
        read_part(journal.path, captions.known)
    return cut


def _beside(
    paths: Iterable[Path | Failure], name_of: Callable[[Path], str], faults: Faults
) -> Iterator[tuple[str, str]]:
    listed: dict[Path, set[str]] = {}
    for path in paths:
        if isinstance(path, Failure):
            continue
        folder, beside = path.parent, path.with_suffix(".txt")
        if folder not in listed:
            listed[folder] = _names(folder)
        if beside.name in listed[folder] and (text := _text(beside, faults)):
            yield name_of(path), text


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.name.endswith(".txt")}
    except OSError:
        return set()


def _text(path: Path, faults: Faults) -> str:
    """The text of a file without blanks around it; "" where it cannot be read or is no caption."""
    if not os.path.isfile(path):  # a pipe, say, which would never end
        return _noted(path, _UNREADABLE, faults)
    try:
        with path.open("rb") as stream:
            content = stream.read(_LONGEST + 1)
    except OSError:
        return _noted(path, _UNREADABLE, faults)
    if len(content) > _LONGEST:
        return _noted(path, _TOO_LONG, faults)
    if b"\0" in content:
        return _noted(path, _BINARY, faults)
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        _noted(path, _REPLACED, faults)
        return content.decode("utf-8-sig", "replace").strip()


def _noted(path: Path, fault: str, faults: Faults) -> str:
    files = faults.setdefault(fault, [])
    if files[-1:] != [path]:  # two images may have one caption
        files.append(path)
    return ""


class _Selected:
    """Some rows of an array, which are read when they are asked for."""

    def __init__(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        self._rows, self._numbers = rows, numbers
        self.shape, self.dtype = (len(numbers), rows.shape[1]), rows.dtype

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        selected: np.ndarray = self._rows[self._numbers[numbers]]
        return selected
