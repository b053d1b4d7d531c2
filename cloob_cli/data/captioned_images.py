"""Images with one or more captions each, for the evaluation of retrieval, opened in place.

CLIP_benchmark's webdatasets (`dataset_type.txt` says "retrieval"; a `.txt` holds one caption a line), and everything
that a recipe's pairs may be (pairs.py). Rows of a table that name the same image are one image with several captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cloob_cli.data.classification import shards
from cloob_cli.data.labeled_set import read_lines
from cloob_cli.data.pairs import PairSource, open_pairs
from cloob_cli.data.sources.image_files import FileSource
from cloob_cli.data.sources.webdataset import WebdatasetSource
from cloob_cli.errors import DataError, Failure, ImageError
from cloob_cli.recipe import DataSection


@dataclass(frozen=True)
class CaptionedSet:
    """Image i is `pairs.image(rows[i])`, with `captions[i]`, at least one; `left_out` have none."""

    name: str
    pairs: PairSource
    rows: list[int]
    captions: list[list[str]]
    left_out: list[Failure]

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return self.pairs.image(self.rows[index])

    def places(self) -> list[tuple[Path, int]]:
        """The images' files, and their numbers where those hold many (`content.digest_of_images`)."""
        files = self.pairs.files()
        if isinstance(self.pairs, FileSource):
            return [(files[row], 0) for row in self.rows]
        return [(file, 0) for file in files] + [(files[0], row) for row in self.rows]

    def image_name(self, index: int) -> str:
        """The place of image `index`, for messages."""
        return self.pairs.name(self.rows[index])


def open_captioned_set(path: Path, split: str = "test") -> CaptionedSet:
    """Open a data set for retrieval.

    Raises:
        DataError: nothing there, an unknown form, no such split, or fewer than two images with captions.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no data set at {path}")
    by_lines = is_benchmark_retrieval(path)
    pairs = _benchmark_pairs(path, split) if by_lines else open_pairs(DataSection(train=str(path)))
    rows: list[int] = []
    captions: list[list[str]] = []
    left_out = list(pairs.unusable)
    seen: dict[str, int] = {}
    for row in range(len(pairs)):
        try:
            texts = pairs.captions(row)
        except ImageError as problem:
            left_out.append(Failure(pairs.name(row), problem.message))
            continue
        if by_lines:
            texts = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
        if not texts:
            left_out.append(Failure(pairs.name(row), "no caption"))
            continue
        known = seen.setdefault(pairs.name(row), len(rows)) if isinstance(pairs, FileSource) else len(rows)
        if known < len(rows):
            captions[known] += texts
        else:
            rows.append(row)
            captions.append(texts)
    if len(rows) < 2:
        raise DataError(f"{path} holds {len(rows)} image(s) with captions", "retrieval compares two or more")
    return CaptionedSet(path.name if path.is_dir() else path.stem, pairs, rows, captions, left_out)


def _benchmark_pairs(path: Path, split: str) -> PairSource:
    return WebdatasetSource(shards(path, split), None, "txt")


def is_benchmark_retrieval(path: Path) -> bool:
    """True for a folder in CLIP_benchmark's layout whose data set is one for retrieval."""
    kind = path / "dataset_type.txt"
    return kind.is_file() and read_lines(kind)[:1] == ["retrieval"]
