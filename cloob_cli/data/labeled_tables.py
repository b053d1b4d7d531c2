"""Labeled data sets in parquet files, CSV, TSV and JSON Lines: a column of images, one of labels, perhaps a split's.

Class names come from `classnames.txt` beside the files where the labels are numbers, from the names that Hugging Face's
datasets write into parquet files, or else are the labels themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES
from cloob_cli.data.image_folder import is_hidden
from cloob_cli.data.labeled_set import SPLITS, ClassificationSet, ImageSource, Source, no_split, read_lines
from cloob_cli.data.sources.columns import IMAGE_NAMES, find_column
from cloob_cli.data.sources.image_files import images_folder, read_columns
from cloob_cli.data.sources.parquet import ParquetSource
from cloob_cli.errors import DataError
from cloob_cli.path_text import path_of
from cloob_cli.strict_model import nearest
from cloob_cli.text_format import counted, first_line

LABEL_NAMES = (
    "label", "labels", "class", "cls", "class_name", "classname", "category", "target", "fine_label",
)  # fmt: skip
TABLES = frozenset({".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson"})
_PARQUET = {".parquet", ".pq"}
_FILE_OF_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.0-9]|$)")


@dataclass(frozen=True)
class ParquetCell:
    """The image of one row of parquet files."""

    rows: ParquetSource
    place: int

    @property
    def path(self) -> Path:
        return self.rows.file_of(self.place)

    def open(self) -> Image.Image:
        return self.rows.image(self.place)


def open_labeled_table(path: Path, split: str) -> ClassificationSet:
    """Open the labeled images of a table, or of the parquet files below a folder.

    Args:
        split: of parquet files those named like it (`test-00000-of-00001.parquet`) are read, of a table with a column
            `split` its rows; where nothing says what the split is, all is "test".

    Raises:
        DataError: an unknown kind of file, no column of images or labels, no such split, or no row.
    """
    if path.is_dir() or path.suffix.lower() in _PARQUET:
        return _parquet(path, split)
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path}: unknown kind of file", f"expected a folder or one of: {' '.join(sorted(TABLES))}")
    columns = read_columns(path)
    names = list(columns)
    column = columns[label_column(names, str(path))]
    images = columns[find_column(names, None, IMAGE_NAMES, "image", str(path))]
    splits = columns.get("split") or [None] * len(images)
    known = {str(value) for value in splits if value is not None}
    if split not in (known or {"test"}):
        raise no_split(path, split, known)
    chosen = [row for row, value in enumerate(splits) if value is None or str(value) == split]
    base = images_folder(path.parent, images)
    sources = [Source(_file(base, str(images[row]))) for row in chosen if images[row] and column[row] is not None]
    labels = [str(column[row]) for row in chosen if images[row] and column[row] is not None]
    # Classes are those of the whole table, so that both splits count them alike.
    return _named(path, path.stem, sources, labels, None, [str(value) for value in column if value is not None])


def _file(base: Path, text: str) -> Path:
    """The file that a cell names; where no file has that name, the one whose `path_text` it is, if that exists."""
    path = base / text
    other = base / path_of(text)
    return other if other != path and not path.exists() and other.exists() else path


def label_column(names: Sequence[str], where: str) -> str:
    """The column of the labels.

    Raises:
        DataError: there is none; the columns that are there are named.
    """
    lower = {name.strip().lower(): name for name in reversed(names)}
    for name in LABEL_NAMES:
        if name in lower:
            return lower[name]
    near = next((found for name in names if (found := nearest(name, LABEL_NAMES))), None)
    hint = f"columns found: {', '.join(names)}" + (f"; '{near}' is a name that is known" if near else "")
    raise DataError(f"{where} has no column for the label", hint)


def parquet_columns(path: Path) -> list[str]:
    """The columns of a parquet file. Raises DataError where it cannot be read."""
    return list(_schema(path)[0])


def parquet_files(path: Path) -> list[Path]:
    """The parquet files of a folder, or the file itself."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _PARQUET and not is_hidden(file, path))


def _parquet(path: Path, split: str) -> ClassificationSet:
    files = parquet_files(path)
    of_split = {file: match[1] for file in files if (match := _FILE_OF_SPLIT.match(file.stem))}
    known = set(of_split.values())
    if path.is_dir() and split not in (known or {"test"}):
        raise no_split(path, split, known)
    chosen = [file for file in files if of_split.get(file) == split] if known and path.is_dir() else files
    columns, features = _schema(chosen[0])
    column = label_column(columns, str(chosen[0]))
    rows = ParquetSource(chosen, None, column)
    labels = [next(iter(rows.captions(index)), "") for index in range(len(rows))]
    kept = [index for index, label in enumerate(labels) if label]
    names = features.get(column, {}).get("names")
    cells = [ParquetCell(rows, index) for index in kept]
    return _named(path, path.stem, cells, [labels[index] for index in kept], names, labels)


def _named(
    path: Path,
    name: str,
    sources: Sequence[ImageSource],
    labels: list[str],
    names: list[str] | None,
    all_labels: Sequence[str],
) -> ClassificationSet:
    if not sources:
        raise DataError(f"{path} holds no labeled image")
    folder = path if path.is_dir() else path.parent
    if names is None and (folder / "classnames.txt").is_file():
        names = read_lines(folder / "classnames.txt")
    numbered = all(label.isdecimal() for label in labels)
    if names is not None and numbered:
        numbers = [int(label) for label in labels]
        if max(numbers) >= len(names):
            raise DataError(f"{path} has a class {max(numbers)}, beyond the {counted(len(names), 'class name')}")
        return ClassificationSet(name, names, _templates(folder), sources, numbers)
    classes = sorted({label for label in all_labels if label}, key=int if numbered else str)
    number = {label: index for index, label in enumerate(classes)}
    return ClassificationSet(name, classes, _templates(folder), sources, [number[label] for label in labels])


def _templates(folder: Path) -> list[str]:
    path = folder / "zeroshot_classification_templates.txt"
    return read_lines(path) if path.is_file() else list(DEFAULT_TEMPLATES)


def _schema(path: Path) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    """The columns of a parquet file, and what Hugging Face's datasets say of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{path} is not a readable parquet file: {first_line(problem)}") from None
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        features = {key: value for key, value in features.items() if isinstance(value, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        features = {}
    return schema.names, features
