"""Labeled data sets for zero-shot evaluation, opened in place: nothing is unpacked or held in memory.

Two layouts are known:

* CLIP_benchmark's webdatasets: `test/0.tar ...` with `KEY.webp|jpg|png|...` and `KEY.cls` (the class number) side by
  side, `test/nshards.txt`, `classnames.txt`, and optionally `zeroshot_classification_templates.txt`;
* a plain folder with one subfolder of images a class, named like the class (`_` and `-` are read as spaces).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES
from cloob_cli.data.image_folder import list_images
from cloob_cli.data.images import open_image
from cloob_cli.data.sources.tar_index import Member, index_tar, read_member
from cloob_cli.errors import DataError, ImageError


@dataclass(frozen=True)
class Source:
    """The place of one image: a file, or `size` bytes of it from `offset`."""

    path: Path
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True)
class ClassificationSet:
    """Images with one label each; `labels[i]` counts into `classes`."""

    name: str
    classes: list[str]
    templates: list[str]
    sources: list[Source]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.sources)

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB.

        Raises:
            ImageError: it cannot be read.
        """
        source = self.sources[index]
        if source.size is None:
            return open_image(source.path)
        return open_image(read_member(source.path, source.offset, source.size))


def open_classification_set(folder: Path) -> ClassificationSet:
    """Open a data set of either layout.

    Raises:
        DataError: no such folder, neither layout, a class number beyond the class names, or no image at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no data set at {folder}")
    opened = _webdataset(folder) if (folder / "classnames.txt").is_file() else _class_folders(folder)
    if not opened.sources:
        raise DataError(
            f"{folder} holds no labeled image",
            "known layouts: classnames.txt with test/*.tar, or a subfolder of images for every class",
        )
    return opened


def _webdataset(folder: Path) -> ClassificationSet:
    classes = _lines(folder / "classnames.txt")
    templates = folder / "zeroshot_classification_templates.txt"
    sources, labels = [], []
    for shard in _shards(folder / "test"):
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
                raise DataError(f"{shard}: {key} has class {numbers[key]}, but there are {len(classes)} class names")
            sources.append(images[key])
            labels.append(numbers[key])
    found = _lines(templates) if templates.is_file() else list(DEFAULT_TEMPLATES)
    return ClassificationSet(folder.name, classes, found, sources, labels)


def _class_number(shard: Path, member: Member) -> int:
    try:
        return int(read_member(shard, member.offset, member.size))
    except ImageError as problem:
        raise DataError(f"{shard}: {member.name}: {problem.message}") from None
    except ValueError:
        raise DataError(f"{shard}: {member.name} does not hold a class number") from None


def _shards(folder: Path) -> list[Path]:
    count = folder / "nshards.txt"
    if not count.is_file():
        return sorted(folder.glob("*.tar"))
    try:
        return [folder / f"{index}.tar" for index in range(int(count.read_text()))]
    except ValueError:
        raise DataError(f"{count} does not hold a number") from None


def _class_folders(folder: Path) -> ClassificationSet:
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    sources, labels = [], []
    for label, subfolder in enumerate(subfolders):
        images = list_images(subfolder)
        sources += [Source(path) for path in images]
        labels += [label] * len(images)
    classes = [path.name.replace("_", " ").replace("-", " ") for path in subfolders]
    return ClassificationSet(folder.name, classes, list(DEFAULT_TEMPLATES), sources, labels)


def _lines(path: Path) -> list[str]:
    try:
        # A blank line in the middle keeps its number, since class numbers are line numbers.
        return [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read: {problem}") from None
