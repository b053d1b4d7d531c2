"""A digest of what a data set's images are, so that what was computed of them can be found again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cloob_cli.errors import DataError
from cloob_cli.parallel import core_count, map_in_order


def digest_of_images(places: Sequence[tuple[Path, int]]) -> str:
    """The hex digest of images in their order: the bytes of their files, and each one's place in its file.

    What the files are called and where they lie makes no difference. Every file is read once.

    Raises:
        DataError: a file cannot be read.
    """
    files = list(dict.fromkeys(path for path, _ in places))
    number = {path: index for index, path in enumerate(files)}
    whole = hashlib.blake2b(digest_size=16)
    for digest in map_in_order(_digest, files, threads=min(4, core_count()), ahead=64):
        whole.update(digest)
    for path, place in places:
        whole.update(f"{number[path]}:{place};".encode())
    return whole.hexdigest()


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    except FileNotFoundError:
        return b"missing"  # it is skipped with a reason when it is to be opened
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}") from None
