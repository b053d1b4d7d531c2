"""Labeled data sets for evaluation, opened in place: nothing is unpacked or held in memory.

The layouts:

* CLIP_benchmark's webdatasets: `test/0.tar ...` with `KEY.webp|jpg|png|...` and `KEY.cls` (the class number) side by
  side, `test/nshards.txt`, `classnames.txt`, and optionally `zeroshot_classification_templates.txt`;
* a plain folder with one subfolder of images a class, named like the class (`_` and `-` are read as spaces); such
  folders may lie in one folder for each split, `train` and `test`;
* parquet, CSV, TSV or JSON Lines with a column of images and one of labels (labeled_tables.py).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES
from cloob_cli.data.image_folder import describe_passed_over, scan, suffixes
from cloob_cli.data.labeled_set import SPLITS, ClassificationSet, Source, no_split, read_lines
from cloob_cli.data.labeled_tables import open_labeled_table
from cloob_cli.data.sources.tar_index import Member, index_tar, read_member
from cloob_cli.errors import DataError, ImageError
from cloob_cli.text_format import counted


def open_classification_set(folder: Path, split: str = "test") -> ClassificationSet:
    """Open a data set of any layout.

    Args:
        folder: the folder, or a file with a table.
        split: which part of a set that has several.

    Raises:
        DataError: no such folder, no known layout, no such split, a class number beyond the class names, or no image.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and _holds_parquet(folder)):
        return open_labeled_table(folder, split)
    if not folder.is_dir():
        raise DataError(f"no data set at {folder}")
    named = (folder / "classnames.txt").is_file()
    opened = _webdataset(folder, split) if named else _class_folders(folder, split)
    if not opened.sources:
        raise DataError(
            f"{folder} holds no labeled image",
            "known layouts: classnames.txt with test/*.tar, or a subfolder of images for every class",
        )
    return opened


def _holds_parquet(folder: Path) -> bool:
    return any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))


def _webdataset(folder: Path, split: str) -> ClassificationSet:
    classes = read_lines(folder / "classnames.txt")
    templates = folder / "zeroshot_classification_templates.txt"
    sources, labels = [], []
    for shard in shards(folder, split):
        images: dict[str, Source] = {}
        numbers: dict[str, int] = {}
        index = index_tar(shard)
        if index.damage:
            raise DataError(f"{shard} is damaged, so its scores would be of other images: {index.damage}")
        for member in index.members:
            key, _, suffix = member.name.rpartition(".")
            if suffix == "cls":
                numbers[key] = _class_number(shard, member)
            elif suffix not in {"txt", "json"}:
                images[key] = Source(shard, member.offset, member.size)
        for key in sorted(images.keys() & numbers.keys()):
            if not 0 <= numbers[key] < len(classes):
                raise DataError(
                    f"{shard}: {key} has class {numbers[key]}, beyond the {counted(len(classes), 'class name')}"
                )
            sources.append(images[key])
            labels.append(numbers[key])
    found = read_lines(templates) if templates.is_file() else list(DEFAULT_TEMPLATES)
    return ClassificationSet(folder.name, classes, found, sources, labels)


def _class_number(shard: Path, member: Member) -> int:
    try:
        return int(read_member(shard, member.offset, member.size))
    except ImageError as problem:
        raise DataError(f"{shard}: {member.name}: {problem.message}") from None
    except ValueError:
        raise DataError(f"{shard}: {member.name} does not hold a class number") from None


def shards(folder: Path, split: str) -> list[Path]:
    """The tar files of a split in CLIP_benchmark's layout, in their order.

    Raises:
        DataError: there is no such split; its nshards.txt holds no number.
    """
    inner = folder / split
    if not inner.is_dir():
        raise no_split(folder, split, [path.parent.name for path in folder.glob("*/*.tar")])
    count = inner / "nshards.txt"
    if not count.is_file():
        return sorted(inner.glob("*.tar"))
    try:
        return [inner / f"{index}.tar" for index in range(int(count.read_text()))]
    except ValueError:
        raise DataError(f"{count} does not hold a number") from None


def _class_folders(folder: Path, split: str) -> ClassificationSet:
    subfolders = _subfolders(folder)
    splits = [path for path in subfolders if path.name in SPLITS and _subfolders(path)]
    if splits and len(splits) == len(subfolders):  # folders of classes, one for each split
        if split not in {path.name for path in splits}:
            raise no_split(folder, split, [path.name for path in splits])
        subfolders = _subfolders(folder / split)
    elif split != "test":
        raise no_split(folder, split, [])
    sources, labels = [], []
    passed_over: Counter[str] = Counter()
    for label, subfolder in enumerate(subfolders):
        found = scan(subfolder)
        sources += [Source(path) for path in found.images]
        labels += [label] * len(found.images)
        passed_over += found.passed_over
    classes = [path.name.replace("_", " ").replace("-", " ") for path in subfolders]
    left_out = _beside(subfolders[0].parent) if subfolders else []
    if passed_over:
        left_out.append(describe_passed_over(passed_over))
    return ClassificationSet(folder.name, classes, list(DEFAULT_TEMPLATES), sources, labels, left_out=tuple(left_out))


def _beside(folder: Path) -> list[str]:
    """A line about the images that lie beside the folders of classes, if there are any."""
    count = sum(
        path.suffix.lower() in suffixes() and not path.name.startswith(".") and path.is_file()
        for path in folder.iterdir()
    )
    return [f"{counted(count, 'image')} beside the folders of the classes left out"] if count else []


def _subfolders(folder: Path) -> list[Path]:
    """The subfolders by name; by number where all names are numbers, as ImageNet V2 has them."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: int(path.name)) if all(path.name.isdecimal() for path in found) else found
