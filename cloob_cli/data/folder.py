"""Which files of a folder are pictures."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

from cloob_cli.errors import InputError, NothingFoundError

_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".avif"}
    | {".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".icns", ".pcx", ".sgi", ".qoi"}
)
_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})


def list_images(folder: Path | str) -> list[Path]:
    """Every picture below `folder`, sorted by path; a path to one picture gives just that.

    Files are chosen by suffix (.heic and .heif where the extra `heif` is installed). Hidden files and folders are
    skipped; linked folders are followed, each real folder once.

    Raises:
        InputError: no such folder, or it cannot be read.
        NothingFoundError: no picture in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}")
    found: list[Path] = []
    others = _collect(folder, found)
    if not found:
        seen = f"{others} other file(s) were seen" if others else "it is empty"
        raise NothingFoundError(f"no pictures in {folder}: {seen}", "known suffixes: " + " ".join(sorted(suffixes())))
    return sorted(found)


@functools.cache
def suffixes() -> frozenset[str]:
    """The lower-case suffixes, with their dots, of files that are taken for pictures."""
    return _SUFFIXES | (_HEIF_SUFFIXES if importlib.util.find_spec("pillow_heif") else frozenset())


def _collect(folder: Path, found: list[Path]) -> int:
    """Append the pictures below `folder` to `found`; the number of other files."""

    def refuse(problem: OSError) -> None:
        if problem.filename is not None and Path(problem.filename) == folder:
            raise InputError(f"cannot read {folder}: {problem.strerror}")

    others = 0
    visited: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(parent)
        identity = (status.st_dev, status.st_ino)
        if identity in visited and status.st_ino:  # a link back up, or a second link to the same folder
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() in suffixes():
                found.append(path)
            else:
                others += 1
    return others
