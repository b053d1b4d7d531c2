"""A set of images with one label each, whatever it is stored in (classification.py opens one)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from cloob_cli.data.preprocess import open_image
from cloob_cli.data.sources.tar_index import read_member
from cloob_cli.errors import DataError

SPLITS = ("train", "test", "val", "valid", "validation", "dev")  # folders and files that are named like this


class ImageSource(Protocol):
    """The place of one image."""

    @property
    def path(self) -> Path:
        """The file that holds it."""
        ...

    @property
    def place(self) -> int:
        """Its place in that file: what tells it from the file's other images."""
        ...

    def open(self) -> Image.Image:
        """The image as RGB. Raises ImageError where it cannot be read."""
        ...


@dataclass(frozen=True)
class Source:
    """The place of one image: a file, or `size` bytes of it from `offset`."""

    path: Path
    offset: int = 0
    size: int | None = None

    @property
    def place(self) -> int:
        return self.offset

    def open(self) -> Image.Image:
        if self.size is None:
            return open_image(self.path)
        return open_image(read_member(self.path, self.offset, self.size))


@dataclass(frozen=True)
class ClassificationSet:
    """Images with one label each; `labels[i]` counts into `classes`.

    `synonyms`: for each class all texts that stand for it; None: its name alone.
    `left_out`: lines that tell of images which are there and not in the set.
    """

    name: str
    classes: list[str]
    templates: list[str]
    sources: Sequence[ImageSource]
    labels: list[int]
    synonyms: list[list[str]] | None = None
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def texts(self) -> list[list[str]]:
        """For each class the texts that stand for it, at least one."""
        return self.synonyms or [[name] for name in self.classes]

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return self.sources[index].open()

    def places(self) -> list[tuple[Path, int]]:
        """For each image its file and its place in it (`content.digest_of_images`)."""
        return [(source.path, source.place) for source in self.sources]

    def image_name(self, index: int) -> str:
        """The place of image `index`, for messages."""
        source = self.sources[index]
        return f"{source.path}@{source.place}" if source.place else str(source.path)


def no_split(folder: Path, split: str, known: Iterable[str]) -> DataError:
    """An error that names the splits that are there."""
    there = f"splits there: {', '.join(sorted(set(known)))}" if set(known) else "it is not divided into splits"
    return DataError(f"{folder} has no split '{split}'", there)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, stripped. Raises DataError where it cannot be read."""
    try:
        # A blank line in the middle keeps its number, since class numbers are line numbers.
        return [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read: {problem}") from None
