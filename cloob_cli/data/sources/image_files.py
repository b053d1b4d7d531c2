"""Pairs whose images are files of their own: a folder with captions beside them, or a table of paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from PIL import Image

from cloob_cli.data.image_folder import list_images
from cloob_cli.data.preprocess import open_image
from cloob_cli.data.sources.columns import CAPTION_NAMES, IMAGE_NAMES, caption_list, find_column
from cloob_cli.data.sources.data_fingerprint import Part, digest, shared_folder
from cloob_cli.errors import DataError, Failure
from cloob_cli.text_format import first_line

METADATA_NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
_SEPARATORS = ("\t", ",", ";", "|")

Row = tuple[str, list[str]]


class FileSource:
    """Pairs of an image's path and its captions, held as Arrow arrays: compact, and cheap to send to a worker."""

    blocks = None

    def __init__(self, rows: Iterable[Row]) -> None:
        paths, captions = [], []
        for path, texts in rows:
            paths.append(path)
            captions.append(texts)
        self.unusable: list[Failure] = []
        self._paths = pa.array(paths, pa.large_string())
        self._captions = pa.array(captions, pa.large_list(pa.large_string()))

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return str(self._paths[index].as_py())

    def captions(self, index: int) -> list[str]:
        return list(self._captions[index].as_py())

    def parts(self) -> list[Part]:
        paths = self._paths.to_pylist()
        base = shared_folder([min(paths), max(paths)])  # what these two share, those between them do
        sizes = [_size(path) for path in paths]
        rows = (
            repr((path[len(base) :].replace(os.sep, "/"), size, captions))
            for path, size, captions in zip(paths, sizes, self._captions.to_pylist(), strict=True)
        )
        return [Part(Path(base).name or base, len(paths), sum(sizes), digest(rows))]

    def files(self) -> list[Path]:
        return [Path(path) for path in self._paths.to_pylist()]

    def image(self, index: int, size_hint: int | None = None) -> Image.Image:
        return open_image(self.name(index), size_hint)


def folder_rows(folder: Path, image_key: str | None, caption_key: str | None) -> list[Row]:
    """Pairs of a folder: those of its metadata.csv, .tsv or .jsonl, or each image with the NAME.txt beside it.

    A text file holds one caption a line. An image without one stays in the list with no caption, so that it is
    counted and named among the skipped.

    Raises:
        DataError: not a single image has a caption.
    """
    for name in METADATA_NAMES:
        if (folder / name).is_file():
            return table_rows(folder / name, image_key, caption_key, None)
    rows: list[Row] = []
    for path in list_images(folder):
        beside = path.with_suffix(".txt")
        rows.append((str(path), _text_lines(beside) if beside.is_file() else []))
    if not any(captions for _, captions in rows):
        which = f"none of the {len(rows):,} images in {folder} has a" if len(rows) != 1 else f"{rows[0][0]} has no"
        raise DataError(
            f"{which} caption",
            f"put NAME.txt beside each image, or one {' or '.join(METADATA_NAMES)} in the folder",
        )
    return rows


def table_rows(path: Path, image_key: str | None, caption_key: str | None, separator: str | None) -> list[Row]:
    """Pairs of a CSV, TSV or JSON Lines file. Relative paths start from the file's folder, else from the current one.

    Raises:
        DataError: it cannot be read, is empty, or lacks the columns.
    """
    columns = read_columns(path, separator)
    image_column = find_column(list(columns), image_key, IMAGE_NAMES, "image", str(path))
    caption_column = find_column(list(columns), caption_key, CAPTION_NAMES, "caption", str(path))
    images, captions = columns[image_column], columns[caption_column]
    if not images:
        raise DataError(f"{path} has a header and no rows")
    base = images_folder(path.parent, images)
    return [
        (str(base / image) if image else f"{path}: row {row + 1}", caption_list(caption) if image else [])
        for row, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]


def read_columns(path: Path, separator: str | None = None) -> dict[str, list[Any]]:
    """The columns of a CSV, TSV or JSON Lines file; those of the first two are text, and None where they are empty.

    Raises:
        DataError: it cannot be read or is empty.
    """
    return _json_lines(path) if path.suffix.lower() in {".jsonl", ".ndjson"} else _csv(path, separator)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # it may be one of the pairs to skip
        return 0


def images_folder(folder: Path, images: list[str | None]) -> Path:
    """The folder that a table's relative paths start from: the table's own, else the current one."""
    first = next((image for image in images if image), "")
    return Path() if not (folder / first).exists() and Path(first).exists() else folder


def _text_lines(path: Path) -> list[str]:
    try:
        return caption_list(path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    except OSError:
        return []


def _csv(path: Path, separator: str | None) -> dict[str, list[Any]]:
    separator = separator or _sniff(path)
    try:
        table = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(_header(path, separator), pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except (pa.ArrowInvalid, OSError) as problem:
        raise DataError(f"{path} cannot be read as a table: {first_line(problem)}") from None
    return {name: column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}


def _sniff(path: Path) -> str:
    """The separator with which the header holds both columns; tab, as open_clip's tables have it, comes first."""
    names = [*IMAGE_NAMES, *CAPTION_NAMES]
    known = {separator: sum(c.lower() in names for c in _header(path, separator)) for separator in _SEPARATORS}
    counts = {separator: len(_header(path, separator)) for separator in _SEPARATORS}
    return max(_SEPARATORS, key=lambda separator: (known[separator], counts[separator]))


def _header(path: Path, separator: str) -> list[str]:
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream, delimiter=separator), [])
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text", "save it as UTF-8") from None
    except (OSError, csv.Error) as problem:
        raise DataError(f"{path} cannot be read: {problem}") from None
    if not header:
        raise DataError(f"{path} is empty")
    return header


def _json_lines(path: Path) -> dict[str, list[Any]]:
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise DataError(f"{path}, line {number}: not a JSON object")
    except (OSError, ValueError) as problem:
        raise DataError(f"{path} cannot be read as JSON Lines: {problem}") from None
    if not rows:
        raise DataError(f"{path} is empty")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}
