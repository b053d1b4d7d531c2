"""Contents of files, each with the paths that hold it: only what is still so on the disk, and each file once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cloob_cli.atomic_files import sha256_of
from cloob_cli.errors import ImageError
from cloob_cli.inference.index.file_stamp import Stamp
from cloob_cli.inference.index.reading import StoredIndex


@dataclass
class Content:
    """A content with its rows of the index, best first: files before links, the earliest, the shortest path.

    Attributes:
        name: of the first row.
        width, height: stored pixels; 0 where no header can be read.
        size: bytes.
        mtime_ns: of the first row's file.
        hash: the perceptual hash; None where there is none.
    """

    rows: list[int]
    name: str
    width: int
    height: int
    size: int
    mtime_ns: int
    hash: int | None = None

    @property
    def order(self) -> tuple[int, int, int, int, str]:
        """A key that sorts the best copy first: the most pixels, the largest file, the earliest, the shortest path."""
        return (-self.width * self.height, -self.size, self.mtime_ns, len(self.name), self.name)


class _File(NamedTuple):
    """A file of a row; in the order of preference among files of equal bytes."""

    is_link: bool
    mtime_ns: int
    length: int
    name: str
    row: int
    identity: tuple[int, int] | str


def content_of(index: StoredIndex, rows: Sequence[int], path_of_name: Callable[[str], Path]) -> Content | None:
    """The content that `rows` of an index have in common; None where no file has it any more.

    Files that are gone or have changed since they were indexed are left out, since the only file that is left must not
    be called a copy of one that is not there. Of links to one file, symbolic or hard, one path is kept: a link is no
    copy, and what it leads to must not be called one.
    """
    from cloob_cli.data.preprocess import read_size

    found: dict[tuple[int, int] | str, _File] = {}
    for row in rows:
        file = _file(row, index.names[row], index.stamps[row], path_of_name(index.names[row]))
        if file is not None and (file.identity not in found or file < found[file.identity]):
            found[file.identity] = file
    files = sorted(found.values())
    if not files:
        return None
    width = height = 0
    for file in files:
        try:
            width, height = read_size(path_of_name(file.name))
            break
        except ImageError:  # no image, or gone this very moment
            continue
    first = files[0]
    return Content(
        [file.row for file in files], first.name, width, height, index.stamps[first.row].size, first.mtime_ns
    )


def _file(row: int, name: str, stamp: Stamp, path: Path) -> _File | None:
    """The file of a row; None where it is not what the row was made of."""
    try:
        status = os.stat(path)
        # As in an update of the index: the time says that nothing changed, or the bytes do.
        if status.st_size != stamp.size or (status.st_mtime_ns != stamp.mtime_ns and sha256_of(path) != stamp.sha256):
            return None
        # Some file systems number no files.
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
    except OSError:
        return None
    return _File(path.is_symlink(), status.st_mtime_ns, len(name), name, row, identity)
