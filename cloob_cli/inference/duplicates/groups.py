"""Groups of duplicates, best copy first: files of the same bytes, and images that look nearly the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cloob_cli.atomic_files import sha256_of
from cloob_cli.errors import Failure
from cloob_cli.inference.duplicates.components import connected_rows
from cloob_cli.inference.duplicates.file_contents import Content, content_of
from cloob_cli.inference.duplicates.perceptual_hash import perceptual_hashes
from cloob_cli.inference.index.file_stamp import Stamp
from cloob_cli.inference.index.reading import StoredIndex
from cloob_cli.path_text import path_text
from cloob_cli.text_format import os_reason

if TYPE_CHECKING:
    from cloob_cli.inference.image_batches import OnImage

Match = Literal["best", "exact", "near"]


@dataclass(frozen=True)
class Copy:
    """An image of a group.

    `match` says what it has in common with the best one: the bytes, or the looks. `cosine` (of the embeddings) and
    `bits` (in which the perceptual hashes differ, of 64) compare it with that; None of the best one and of its bytes.
    """

    path: Path
    match: Match
    width: int
    height: int
    size: int
    sha256: str
    cosine: float | None = None
    bits: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object of a JSON result."""
        return {
            "path": path_text(self.path),
            "match": self.match,
            "width": self.width,
            "height": self.height,
            "size": self.size,
            "sha256": self.sha256,
            "cosine": self.cosine,
            "bits": self.bits,
        }


@dataclass(frozen=True)
class Limits:
    """Limits of near duplicates: the least cosine of the embeddings, and the most bits of the hashes that differ."""

    cosine: float = 0.93
    bits: int = 8


def duplicate_groups(
    index: StoredIndex,
    path_of_name: Callable[[str], Path],
    limits: Limits | None,
    *,
    workers: int | None = None,
    memory_budget: int | None = None,
    on_tile: Callable[[int, int], None] | None = None,
    on_image: OnImage | None = None,
) -> Iterator[list[Copy]]:
    """Yield groups of at least two images, in the order of their best copies in the index.

    The best copy has the most pixels, then the most bytes; then it is the earliest, and has the shortest path. Every
    image of a group is a duplicate of the best one itself; chains of images that change little by little are divided.
    Images that are gone or changed since they were indexed are left out, and of links to one file all but one.

    Args:
        path_of_name: the path of an image in the index.
        limits: of near duplicates; None: only files of the same bytes.
        on_tile: called with the tiles of cosines that are done, and their number.
        on_image: called for each image whose looks are compared.
    """
    by_content: dict[str, list[int]] = {}
    for row, stamp in enumerate(index.stamps):
        by_content.setdefault(stamp.sha256 or f"row {row}", []).append(row)
    firsts = [rows[0] for rows in by_content.values()]
    sets: list[list[int]] = []
    if limits:
        # Rows of equal contents are compared once.
        connected = connected_rows(np.asarray(index.rows), np.array(firsts), limits.cosine, on_tile)
        sets = [[firsts[place] for place in places] for places in connected]
    rows_of = {rows[0]: rows for rows in by_content.values()}
    looked = [
        [one for first in members if (one := content_of(index, rows_of.pop(first), path_of_name))] for members in sets
    ]
    compared = [content for members in looked for content in members if len(members) > 1]
    hashes = perceptual_hashes([path_of_name(one.name) for one in compared], workers, memory_budget, on_image)
    for content, value in zip(compared, hashes, strict=True):
        content.hash = value
    alone = (content_of(index, rows, path_of_name) for rows in rows_of.values() if len(rows) > 1)
    looked += [[content] for content in alone if content]
    groups = [group for members in looked for group in _divide(index, members, limits)]
    for group in sorted(groups, key=lambda group: group[0][0].rows[0]):
        yield _copies(index, group, path_of_name)


def identical_index(
    paths: Iterable[Path], on_failure: Callable[[Failure], None], on_compared: Callable[[], None] | None = None
) -> StoredIndex:
    """An index without embeddings of the files whose size another one has too, for `duplicate_groups` without limits.

    Args:
        on_failure: called for each file that cannot be read.
        on_compared: called for each whose bytes were read.
    """
    by_size: dict[int, list[tuple[Path, int]]] = {}
    index = StoredIndex([], np.empty((0, 0), np.float32), [], {})

    def tried(path: Path, read: Callable[[Path], Any]) -> Any:
        try:
            return read(path)
        except OSError as problem:
            on_failure(Failure(path_text(path), f"cannot be read: {os_reason(problem)}"))
            return None

    for path in paths:
        if (found := tried(path, os.stat)) is not None:
            by_size.setdefault(found.st_size, []).append((path, found.st_mtime_ns))
    for size, alike in by_size.items():
        for path, mtime_ns in alike if len(alike) > 1 else []:
            if (sha256 := tried(path, sha256_of)) is not None:
                index.stamps.append(Stamp(size, mtime_ns, sha256))
                index.names.append(path_text(path))
            if on_compared:
                on_compared()
    return index


_Group = list[tuple[Content, float | None, int | None]]  # contents with cosine and differing bits to the first


def _divide(index: StoredIndex, contents: list[Content], limits: Limits | None) -> list[_Group]:
    """Divide contents that are connected into groups around their best ones."""
    contents.sort(key=lambda one: one.order)
    groups: list[_Group] = []
    # Of the first of each group. Hashes go first: where a model finds all images alike, a set may hold every image.
    hashes, rows = np.zeros(len(contents), np.uint64), np.zeros(len(contents), np.int64)
    hashed = np.zeros(len(contents), bool)
    for one in contents:
        joined = False
        if limits and one.hash is not None:
            value = np.uint64(one.hash)
            bits = np.bitwise_count(hashes[: len(groups)] ^ value)
            near = np.flatnonzero((bits <= limits.bits) & hashed[: len(groups)])
            if len(near):
                cosines = _vectors(index, rows[near]) @ _vectors(index, one.rows[:1])[0]
                nearest = int(np.argmax(cosines))
                if joined := bool(cosines[nearest] >= limits.cosine):
                    group = int(near[nearest])
                    groups[group].append((one, float(cosines[nearest]), int(bits[group])))
        if not joined and (one.hash is not None or len(one.rows) > 1):
            at = len(groups)
            hashes[at], rows[at], hashed[at] = one.hash or 0, one.rows[0], one.hash is not None
            groups.append([(one, None, None)])
    return [group for group in groups if sum(len(one.rows) for one, _, _ in group) > 1]


def _vectors(index: StoredIndex, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Embeddings [len(rows), D] in float32."""
    return np.asarray(index.rows[np.asarray(rows)], np.float32)


def _copies(index: StoredIndex, group: _Group, path_of_name: Callable[[str], Path]) -> list[Copy]:
    copies: list[Copy] = []
    for place, (content, cosine, bits) in enumerate(group):
        for row in content.rows:
            match: Match = "near" if place else "exact" if copies else "best"
            path, sha256 = path_of_name(index.names[row]), index.stamps[row].sha256
            copies.append(Copy(path, match, content.width, content.height, content.size, sha256, cosine, bits))
    return copies
