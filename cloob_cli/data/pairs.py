"""Training pairs from a recipe's data section: images with one or more captions each."""

from __future__ import annotations

import glob
import re
from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from cloob_cli.data.image_folder import is_hidden, suffixes
from cloob_cli.data.sources.data_fingerprint import Part
from cloob_cli.errors import DataError, Failure, ImageError
from cloob_cli.recipe import DataSection

_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".tar": "webdataset",
    ".csv": "csv", ".tsv": "csv", ".jsonl": "csv", ".ndjson": "csv",
}  # fmt: skip
_TRIED = 8  # pairs that are read at once, so that a wrong key fails within seconds


class PairSource(Protocol):
    """Pairs that can be read in any order; an instance can be sent to a worker process.

    `blocks` is None where any pair can be read alone; else (int64 [len]: the block of each pair, how many blocks fit
    in memory at once), and an epoch is mixed in windows of so many blocks (`order.block_windows`).
    `unusable` is what is not among the pairs although it lies with them.
    """

    unusable: list[Failure]

    @property
    def blocks(self) -> tuple[np.ndarray, int] | None: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The place of the pair, for messages."""
        ...

    def files(self) -> list[Path]:
        """The files that hold the images."""
        ...

    def captions(self, index: int) -> list[str]:
        """Its captions; none makes it a pair to skip. Raises ImageError where its storage cannot be read."""
        ...

    def image(self, index: int, size_hint: int | None = None) -> Image.Image:
        """Its image, as `images.open_image` gives it, or ImageError."""
        ...

    def parts(self) -> list[Part]:
        """The parts of the source, for `fingerprint.changes`; reads no image."""
        ...


def find_pairs(section: DataSection) -> None:
    """Look for the sources that a data section names, without opening them.

    Raises:
        DataError: one of them is not there.
    """
    for named in (section.train, section.validation):
        _paths([] if named is None else named)


def open_pairs(section: DataSection, where: str | list[str] | None = None) -> PairSource:
    """Open the pairs of a data section.

    Args:
        where: what to open instead of `section.train`, for instance `section.validation`.

    Raises:
        DataError: nothing there, an unknown format, other columns than named, or not one readable pair among the first
            few that are tried; the message says what was found.
    """
    paths = _paths(section.train if where is None else where)
    if not paths:
        raise DataError("no data source is named", "set data.train to a folder, a file or a pattern")
    kinds = {path: section.format if section.format != "auto" else _format_of(path) for path in paths}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{path} ({kind})" for path, kind in list(kinds.items())[:4])
        raise DataError(f"sources of different formats cannot be mixed: {listed}")
    source = _open(kinds[paths[0]], paths, section)
    _try_some(source)
    return source


def _open(kind: str, paths: list[Path], section: DataSection) -> PairSource:
    image_key, caption_key = section.image_key, section.caption_key
    if kind == "parquet":
        from cloob_cli.data.sources.parquet import ParquetSource

        return ParquetSource(_files(paths, ".parquet", ".pq"), image_key, caption_key)
    if kind == "webdataset":
        from cloob_cli.data.sources.webdataset import WebdatasetSource

        return WebdatasetSource(_files(paths, ".tar"), image_key, caption_key)
    from cloob_cli.data.sources.image_files import FileSource, folder_rows, table_rows

    if kind == "folder":
        return FileSource(row for path in paths for row in folder_rows(path, image_key, caption_key))
    tables = _files(paths, ".csv", ".tsv", ".jsonl", ".ndjson")
    return FileSource(row for path in tables for row in table_rows(path, image_key, caption_key, section.separator))


def _paths(named: str | list[str]) -> list[Path]:
    return [path for pattern in ([named] if isinstance(named, str) else named) for path in _expand(pattern)]


def _expand(pattern: str) -> list[Path]:
    """Brace ranges `{00..99}`, brace lists `{a,b}` and shell patterns -> paths that exist."""
    paths: list[Path] = []
    for name in expand_braces(pattern):
        if Path(name).exists():
            paths.append(Path(name))
        elif any(sign in name for sign in "*?["):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise DataError(f"nothing matches {name}")
            paths.extend(map(Path, matches))
        else:
            raise DataError(f"no data at {name}", "name its folder with --set data.train=DIR")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """`a{00..02}` -> a00, a01, a02; `a{x,y}` -> ax, ay; several braces give every combination."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        choices = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        step = 1 if first <= last else -1
        choices = [str(number).zfill(len(match[1])) for number in range(first, last + step, step)]
    return [
        rest for choice in choices for rest in expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
    ]


def _format_of(path: Path) -> str:
    if path.is_file():
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path}: unknown kind of file", "expected .parquet, .tar, .csv, .tsv, .jsonl or a folder")
        return kind
    counts: Counter[str] = Counter()
    for entry in path.rglob("*"):
        if is_hidden(entry, path):  # as in `.cloob`, the index of a folder that is searched
            continue
        if entry.name.startswith("metadata."):
            return "folder"
        if entry.is_file() and not _describes_a_shard(entry):
            counts[entry.suffix.lower() or "(no suffix)"] += 1
    kinds = {_FORMATS.get(suffix, "folder" if suffix in suffixes() else "") for suffix in counts}
    for kind in ("parquet", "webdataset", "folder", "csv"):
        if kind in kinds:
            return kind
    found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items())) or "it is empty"
    raise DataError(f"no images, .parquet, .tar or .csv files in {path}: {found}")


def _describes_a_shard(path: Path) -> bool:
    """True for img2dataset's table of what it fetched into the tar or folder of that name, which holds no pairs."""
    return path.suffix == ".parquet" and (path.with_suffix(".tar").is_file() or path.with_suffix("").is_dir())


def _files(paths: list[Path], *endings: str) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and not is_hidden(p, path))
        if not inside:
            raise DataError(f"no {' or '.join(endings)} file in {path}")
        files.extend(inside)
    return files


def _try_some(source: PairSource) -> None:
    places = np.unique(np.linspace(0, len(source) - 1, _TRIED).astype(np.int64))
    reasons = []
    for index in places.tolist():
        try:
            source.image(index)
            if source.captions(index):
                return
            reasons.append(f"{source.name(index)}: no caption")
        except ImageError as problem:
            reasons.append(f"{source.name(index)}: {problem.message}")
    raise DataError(f"none of the {len(reasons)} pairs that were tried can be used; {reasons[0]}")
