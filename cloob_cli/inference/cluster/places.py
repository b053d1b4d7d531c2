"""Places of files: on this disk, or at an address such as `s3://BUCKET/KEY` and `hf://datasets/ORG/REPO/FILE`."""

from __future__ import annotations

import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from cloob_cli.errors import DataError, ImageError
from cloob_cli.inference.arrow_file import arrow_file
from cloob_cli.path_text import path_text
from cloob_cli.text_format import first_line

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

# `Path` makes one slash of two, so that an address that was a path for a while has one.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.DOTALL)
_BUFFER = 1 << 20  # bytes that are read at a time from elsewhere, so that the headers of a tar cost few requests
MOST_BYTES = 1 << 30  # of one image's file: it is held in memory, and passed from one process to another


class Place(NamedTuple):
    """A file or folder: on this disk where `base` is empty, else at `path` in the file system of the address `base`."""

    base: str
    path: str

    @property
    def name(self) -> str:
        """Text that tells it from others: the path, or the address without options."""
        if not self.base:
            return path_text(Path(self.path))
        scheme, _, host = self.base.partition("?")[0].partition("://")
        return f"{scheme}://{self.path}" if scheme in _IN_PATH else f"{scheme}://{host}/{self.path.lstrip('/')}"

    @property
    def suffix(self) -> str:
        """The lower-case end of the name, with its dot."""
        return os.path.splitext(self.path)[1].lower()

    def at(self, relative: str) -> Place:
        """The place of a path that starts in the folder of this file."""
        if not self.base:
            return Place("", os.path.join(os.path.dirname(self.path), relative))
        return Place(self.base, f"{self.path.rpartition('/')[0]}/{relative}")


_IN_PATH = {"s3", "gs", "gcs", "hf"}  # of these the path begins with the host: a bucket, or `datasets`


def place_of(argument: Path | str) -> Place:
    """The place that an argument of the command line names. Options of a file system stand behind a `?` at its end.

    `s3://bucket/folder?region=eu-west-1&endpoint_override=127.0.0.1:9000&scheme=http`, for example.
    """
    match = _ADDRESS.fullmatch(argument.as_posix() if isinstance(argument, Path) else argument)
    if match is None:
        return Place("", str(argument))
    scheme, rest = match.groups()
    rest, _, options = rest.partition("?")
    host, _, path = rest.rstrip("/").partition("/")
    base = f"{scheme}://{'' if scheme == 'hf' else host}" + (f"?{options}" if options else "")
    return Place(base, f"{host}/{path}".rstrip("/") if scheme in _IN_PATH else path)


@functools.cache
def file_system(base: str) -> FileSystem:
    """The file system at an address; pyarrow knows `s3` and others, `hf` is the Hugging Face Hub.

    Raises:
        DataError: it cannot be reached, or nobody here knows its kind.
    """
    from pyarrow import fs

    try:
        if base.startswith("hf:"):
            from huggingface_hub import HfFileSystem

            return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
        return fs.FileSystem.from_uri(base)[0]
    except Exception as problem:  # pyarrow's and botocore-like errors of many classes
        raise DataError(f"{base}: {first_line(problem)}", "known addresses: s3://BUCKET/PATH, hf://PATH") from None


def open_place(place: Place) -> BinaryIO:
    """Open a file to be read from any of its bytes.

    Raises:
        OSError: it cannot be read.
    """
    if not place.base:
        return open(place.path, "rb")
    return cast(BinaryIO, io.BufferedReader(file_system(place.base).open_input_file(place.path), _BUFFER))


@contextmanager
def place_for_arrow(place: Place) -> Iterator[NativeFile | BinaryIO]:
    """A file for pyarrow to read data from; see `arrow_file`, which opens those of this disk.

    Raises:
        OSError: it cannot be read.
    """
    if place.base:
        with open_place(place) as stream:
            yield stream
    else:
        with arrow_file(Path(place.path)) as file:
            yield file


def read_place(place: Place) -> bytes:
    """The bytes of a file that may be an image.

    Raises:
        ImageError: it is larger than `MOST_BYTES`, or no regular file.
        OSError: it cannot be read.
    """
    # Opening a pipe would wait for somebody to write into it.
    if not place.base and not stat.S_ISREG(os.stat(place.path).st_mode):
        raise ImageError("not a regular file")
    with open_place(place) as stream:
        check_size(stream.seek(0, io.SEEK_END))
        stream.seek(0)
        return stream.read()


def check_size(size: int) -> None:
    """Refuse an image's file that is too large to be held in memory.

    Raises:
        ImageError: it is.
    """
    if size > MOST_BYTES:
        raise ImageError(f"too large: a file of {size / 1e9:.1f} GB (at most {MOST_BYTES / 1e9:.1f} GB are read)")
