"""Bring an index up to date: compare images with known rows, embed what is new or changed, write all in their order."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloob_cli.errors import Failure
from cloob_cli.inference.index.captions import Captions
from cloob_cli.inference.index.file_stamp import stamped
from cloob_cli.inference.index.files import IndexFiles
from cloob_cli.inference.index.journal import Journal, read_part
from cloob_cli.inference.index.known_rows import Kept, KnownRows
from cloob_cli.inference.index.reading import StoredIndex, image_index_schema
from cloob_cli.inference.index.writing import Chunk, write_chunks
from cloob_cli.parallel import core_count, map_in_order
from cloob_cli.path_text import path_text

if TYPE_CHECKING:
    from cloob_cli.inference.embed import EmbeddedBatch

NameOf = Callable[[Path], str]

_CHUNK = 4096  # rows that are copied at a time
_AHEAD = 64  # files whose contents are compared ahead of their turn


@dataclass
class Plan:
    """The work of an update.

    Args:
        entries: for every image in order the row that it keeps, its path where it is to be embedded, or why it
            cannot be read.
        found_again: kept rows that were found by the contents of the file, under another name or after a change of
            its time.
    """

    entries: list[Kept | Path | Failure]
    found_again: int

    @property
    def new(self) -> list[Path | Failure]:
        """The images to embed, and in their places those that cannot be read."""
        return [entry for entry in self.entries if not isinstance(entry, Kept)]

    @property
    def kept(self) -> int:
        """The number of images that keep their rows."""
        return sum(isinstance(entry, Kept) for entry in self.entries)

    def is_done(self, stored: StoredIndex | None) -> bool:
        """True where an index holds exactly what it would hold after the update."""
        return not self.new and self.has_rows_of(stored)

    def has_rows_of(self, stored: StoredIndex | None) -> bool:
        """True where the rows that are kept are all those of an index, in its order."""
        kept = [entry for entry in self.entries if isinstance(entry, Kept)]
        return (
            stored is not None
            and [entry.name for entry in kept] == stored.names
            and [entry.stamp for entry in kept] == stored.stamps
        )

    def gone(self, stored: StoredIndex | None, name_of: NameOf) -> int:
        """The number of images of an index that are no longer there under their name."""
        names = {_name(entry, name_of) for entry in self.entries}
        return sum(name not in names for name in stored.names) if stored else 0


def plan_update(paths: Iterable[Path | Failure], known: KnownRows, name_of: NameOf = path_text) -> Plan:
    """Find for every image the known row of the same name, size and time, or else of the same contents.

    Args:
        name_of: the name of a path in the index.
    """
    entries = [_by_status(path, known, name_of) for path in paths]
    doubtful = [number for number, entry in enumerate(entries) if isinstance(entry, _Doubtful)]

    def compare(number: int) -> Kept | Path:
        entry = entries[number]
        assert isinstance(entry, _Doubtful)
        return _by_content(entry.path, known, name_of)

    found_again = 0
    threads = min(core_count(), len(doubtful))
    for number, entry in zip(doubtful, map_in_order(compare, doubtful, threads, _AHEAD), strict=True):
        entries[number] = entry
        found_again += isinstance(entry, Kept)
    return Plan([entry for entry in entries if not isinstance(entry, _Doubtful)], found_again)


def record(
    batches: Generator[EmbeddedBatch], journal: Journal, new: Sequence[Path | Failure], name_of: NameOf = path_text
) -> Generator[EmbeddedBatch]:
    """Append embedded batches of the images `new` to a journal under their names in the index, and pass them on."""
    names = {path_text(path): name_of(path) for path in new if isinstance(path, Path)}
    with closing(batches):
        for batch in batches:
            if batch.embeddings is not None:
                journal.append([names[name] for name in batch.names], batch.stamps, batch.embeddings.numpy())
            yield batch


def write_index(
    files: IndexFiles,
    plan: Plan,
    known: KnownRows,
    journals: Sequence[Path],
    failures: Sequence[Failure],
    metadata: dict[str, str],
    name_of: NameOf = path_text,
    captions: Captions | None = None,
) -> int:
    """Write the rows of all images of a plan that can be read; returns their number.

    Args:
        journals: the parts that hold what was embedded for the plan.
        failures: images of the plan that could not be read.
        captions: of the images, all of them embedded.

    Raises:
        NothingFoundError: there is not one row.
    """
    for part in journals:
        read_part(part, known)
    failed = {failure.name for failure in failures}
    rows: list[Kept] = []
    for entry in plan.entries:
        if isinstance(entry, Path) and path_text(entry) not in failed:
            row = known.by_name[name_of(entry)]
            rows.append(Kept(name_of(entry), row.stamp, row))
        elif isinstance(entry, Kept):
            rows.append(entry)
    has_captions = captions is not None and any(entry.name in captions.by_name for entry in rows)
    schema = image_index_schema(files.column, metadata, captions=has_captions)

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            embeddings = known.gather([entry.row for entry in chunk])
            described = [{files.column: entry.name, **entry.stamp._asdict()} for entry in chunk]
            if captions and has_captions:
                yield captions.describe(chunk, embeddings, described)
            else:
                yield Chunk(embeddings, described)

    def when_read() -> None:  # Windows replaces no file that is mapped
        known.close()
        if captions:
            captions.known.close()

    return write_chunks(files, schema, chunks(), failures, when_read)


class _Doubtful(NamedTuple):
    path: Path


def _name(entry: Kept | Path | Failure, name_of: NameOf) -> str:
    if isinstance(entry, Path):
        return name_of(entry)
    return entry.name


def _by_status(path: Path | Failure, known: KnownRows, name_of: NameOf) -> Kept | Path | Failure | _Doubtful:
    if isinstance(path, Failure):
        return path
    try:
        status = os.stat(path)
    except OSError:  # reading it will say why
        return path
    if not known.sizes or status.st_size not in known.sizes or not stat.S_ISREG(status.st_mode):
        return path
    name = name_of(path)
    row = known.by_name.get(name)
    if row and (row.stamp.size, row.stamp.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return Kept(name, row.stamp, row)
    return _Doubtful(path)


def _by_content(path: Path, known: KnownRows, name_of: NameOf) -> Kept | Path:
    try:
        stamp, _ = stamped(path, lambda: None)
    except OSError:
        return path
    row = known.by_content.get(stamp.sha256)
    return Kept(name_of(path), stamp, row) if row else path
