"""Images whose labels are known: a folder for each label, or a file of paths and labels.

A folder of images is a label's where its name is the label's, or a synonym's, or what `--sort-into` makes of the label;
capital letters, `_` and `-` do not count. An image below `animal/bird/robin` belongs to the deepest folder that is a
label's. A file has the columns (.csv) or keys (.jsonl) `path` and `label`, as `cloob classify -o` writes them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloob_cli.data.image_folder import scan
from cloob_cli.errors import DataError
from cloob_cli.filing.folder_names import folder_name
from cloob_cli.inference.labels import Label
from cloob_cli.path_text import path_of

SUFFIXES = (".csv", ".jsonl")


@dataclass
class LabeledImages:
    """Images with the number of their label; -1 stands for none of the labels, and `others` names what those have."""

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    others: dict[str, None] = field(default_factory=dict)


def labels_of_folder(source: Path) -> list[Label]:
    """The labels that the folders below `source`, or the rows of a file, name; in alphabetical order.

    Raises:
        DataError: there are none.
    """
    if source.is_file():
        names = {label for _, label in _rows(source)}
    else:
        names = {path.relative_to(source).parts[0].replace("_", " ").replace("-", " ") for path in _images(source)}
    return [Label(name, (name,)) for name in sorted(names)]


def read_labeled(source: Path, labels: Sequence[Label]) -> LabeledImages:
    """The images of `source` with their labels.

    Raises:
        DataError: not readable, without an image, or not one image has one of the labels.
        NothingFoundError: a folder without images.
    """
    numbers: dict[str, int] = {}
    for number, label in enumerate(labels):
        for name in (label.name, folder_name(label.name), *label.names):
            numbers.setdefault(_key(name), number)
    found = LabeledImages()
    for path, names in _named(source):
        number = next((numbers[_key(name)] for name in names if _key(name) in numbers), -1)
        found.paths.append(path)
        found.labels.append(number)
        if number < 0:
            found.others.setdefault(names[0])
    if not any(number >= 0 for number in found.labels):
        first = next(iter(found.others), "")
        raise DataError(
            f"{source}: no image has one of the labels", f"it has '{first}', say; folders are named like labels"
        )
    return found


def _named(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each image with the names that may be its label, the likeliest first."""
    if source.is_file():
        for path, label in _rows(source):
            yield path, [label]
        return
    for path in _images(source):
        yield path, list(reversed(path.relative_to(source).parts[:-1]))


def _images(source: Path) -> list[Path]:
    """The images in folders below `source`; those in it directly have no label."""
    images = [path for path in scan(source).images if path.parent != source and path != source]
    if not images:
        raise DataError(f"{source}: no folders of images", "one folder for each label is expected: dog/, cat/")
    return images


def _rows(source: Path) -> Iterator[tuple[Path, str]]:
    if source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{source}: neither a folder nor a file of labels", f"known files: {' '.join(SUFFIXES)}")
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream) if source.suffix.lower() == ".csv" else map(json.loads, stream)
            for row in rows:
                path, label = row["path"], row["label"]
                if not isinstance(path, str) or not isinstance(label, str):
                    raise TypeError
                yield path_of(path), label
    except OSError as problem:
        raise DataError(f"{source}: cannot be read: {problem.strerror or problem}") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise DataError(
            f"{source}: not rows with `path` and `label`", "as `cloob classify -o FILE` writes them"
        ) from None


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
