"""Parts of clip-retrieval's layout: files img_emb/img_emb_N.npy, each with its metadata/metadata_N.parquet.

clip-retrieval writes a part for each of its partitions, with as many digits in all names as the last number needs, and
none for a partition without images.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from cloob_cli.errors import InputError
from cloob_cli.text_format import os_reason

PARTS_HINT = "each img_emb/img_emb_N.npy needs a metadata/metadata_N.parquet with as many rows"

_EMBEDDINGS, _METADATA = "img_emb", "metadata"
_NAMES = {
    _EMBEDDINGS: re.compile(r"img_emb_([0-9]+)\.npy"),
    _METADATA: re.compile(r"metadata_([0-9]+)\.parquet"),
}


class Part(NamedTuple):
    """The embeddings of some images, and the file that names these."""

    embeddings: Path
    metadata: Path


def find_parts(folder: Path) -> list[Part]:
    """The parts in a folder, in the order of their numbers; none where it has another layout.

    Raises:
        InputError: a part lacks one of its files, two have one number, or there is no part in folders that are meant
            for them.
    """
    embeddings, metadata = (_numbered(folder / name, pattern) for name, pattern in _NAMES.items())
    if not embeddings:
        if all((folder / name).is_dir() for name in _NAMES):
            raise InputError(f"{folder / _EMBEDDINGS} holds no img_emb_N.npy", PARTS_HINT)
        return []
    for number, path in embeddings.items():
        if number not in metadata:
            digits = path.stem.rpartition("_")[2]
            missing = folder / _METADATA / f"metadata_{digits}.parquet"
            raise InputError(f"{path} has no metadata: there is no {missing}", PARTS_HINT)
    for number, path in metadata.items():
        if number not in embeddings:
            raise InputError(f"{path} has no embeddings in {folder / _EMBEDDINGS}", PARTS_HINT)
    return [Part(embeddings[number], metadata[number]) for number in sorted(embeddings)]


def part_of(file: Path) -> Part | None:
    """The one part that a file belongs to; None where it is no file of such a layout."""
    pattern = _NAMES.get(file.parent.name)
    match = pattern.fullmatch(file.name) if pattern else None
    folder = file.parent.parent
    if not match or not all((folder / name).is_dir() for name in _NAMES):
        return None
    number, pair = int(match[1]), []
    for name, own in _NAMES.items():
        same = file if name == file.parent.name else _numbered(folder / name, own).get(number)
        expected = f"img_emb_{match[1]}.npy" if name == _EMBEDDINGS else f"metadata_{match[1]}.parquet"
        pair.append(same or folder / name / expected)
    return Part(*pair)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """The files of a folder whose names fit, by their numbers."""
    found: dict[int, Path] = {}
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as problem:
        raise InputError(f"{folder} cannot be read: {os_reason(problem)}") from None
    for name in names:
        if match := pattern.fullmatch(name):
            number, path = int(match[1]), folder / name
            if number in found:
                raise InputError(f"{path} and {found[number].name} have the same number", PARTS_HINT)
            if path.exists() and not path.is_file():  # a pipe, say, which nobody writes to
                raise InputError(f"{path} is not a regular file", PARTS_HINT)
            found[number] = path
    return found
