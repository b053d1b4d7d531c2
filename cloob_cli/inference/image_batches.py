"""Read folders of images as batches of decoded pixels, in order, in memory that does not grow with the folder.

Threads decode: Pillow lets go of the interpreter's lock while it decodes and resizes, so they keep as many cores busy
as processes would, without a second copy of torch in each and without sending pixels between processes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cloob_cli.data.decoding_memory import MemoryBudget, default_budget
from cloob_cli.data.preprocess import Preprocess, read_crop
from cloob_cli.data.thumbnails import thumbnail
from cloob_cli.errors import Failure, ImageError, one_line
from cloob_cli.inference.find_images import Collected, collect_images
from cloob_cli.inference.index.file_stamp import Stamp, stamped
from cloob_cli.parallel import core_count, map_in_order
from cloob_cli.path_text import path_text
from cloob_cli.text_format import os_reason

__all__ = ["Collected", "ImageBatch", "OnImage", "collect_images", "image_batches"]

Result = TypeVar("Result")

_MOST_THREADS = 32


# A readable image: its path as text, the cropped pixels, and where they were asked for its stamp and thumbnail.
_Read: TypeAlias = tuple[str, np.ndarray, Stamp | None, bytes]

# Called for every image in order, as soon as it was read: with None, or with why it was skipped.
OnImage = Callable[[Failure | None], None]


@dataclass
class ImageBatch:
    """Consecutive readable images, `paths` and `pixels`, uint8 [B, H, W, 3], or (B is 0) one that is not readable.

    Where they were asked for `stamps` tells the files that they were read from, and `thumbnails` holds one for each
    image, empty bytes where none could be made.
    """

    paths: list[str]
    pixels: Tensor
    failures: list[Failure] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)


def image_batches(
    paths: Iterable[Path | Failure],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int | None = None,
    exact: bool = False,
    memory_budget: int | None = None,
    on_image: OnImage | None = None,
    with_stamps: bool = False,
    with_thumbnails: bool = False,
) -> Generator[ImageBatch]:
    """Decode, resize and crop images; at most two batches are held at any time.

    Args:
        paths: the images; a failure among them is passed on in its place.
        workers: threads; 0 decodes in the caller's thread; None picks by the number of cores.
        memory_budget: bytes that decoding may take at a time; large images wait for their part, and those that need
            more are failures. None picks by the machine's memory.
        exact: decode in full, as `Preprocess` does; otherwise large images are made smaller first (`read_crop`).
        with_stamps: also stamp each file.
        with_thumbnails: also make thumbnails, of the same decoded images.

    Yields:
        Batches of `batch_size` readable images (the last may be smaller), in the order of `paths`, and each failure
        as soon as it is known, in a batch of its own.
    """
    count = min(core_count(), _MOST_THREADS) if workers is None else workers
    budget = MemoryBudget(default_budget() if memory_budget is None else memory_budget)

    def read(path: Path | Failure) -> _Read | Failure:
        if isinstance(path, Failure):
            return path
        return _read(path, preprocess, budget, exact, with_stamps, with_thumbnails)

    def batch_of(images: list[_Read]) -> ImageBatch:
        paths, crops, stamps, small = zip(*images, strict=True)
        thumbnails = list(small) if with_thumbnails else []
        return ImageBatch(
            list(paths), torch.from_numpy(np.stack(crops)), [], [stamp for stamp in stamps if stamp], thumbnails
        )

    size = preprocess.image_size
    nothing = torch.empty(0, size, size, 3, dtype=torch.uint8)
    images: list[_Read] = []
    for result in map_in_order(read, paths, count, ahead=batch_size + count):
        if on_image:
            on_image(result if isinstance(result, Failure) else None)
        if isinstance(result, Failure):
            yield ImageBatch([], nothing, [result])
            continue
        images.append(result)
        if len(images) == batch_size:
            yield batch_of(images)
            images = []
    if images:
        yield batch_of(images)


def _read(
    path: Path,
    preprocess: Preprocess,
    budget: MemoryBudget,
    exact: bool,
    with_stamp: bool,
    with_thumbnail: bool,
) -> _Read | Failure:
    small = b""

    def keep_small(image: Image.Image) -> None:
        nonlocal small
        try:
            small = thumbnail(image)
        except Exception:  # the image is read; it has its row without a thumbnail
            pass

    def read() -> np.ndarray:
        return read_crop(path, preprocess, budget, exact=exact, also=keep_small if with_thumbnail else None)

    def read_file() -> _Read:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("not a regular file")
        if not with_stamp:
            return path_text(path), read(), None, small
        stamp, crop = stamped(path, read)
        return path_text(path), crop, stamp, small

    result = result_or_reason(read_file)
    return Failure(path_text(path), result) if isinstance(result, str) else result


def result_or_reason(read: Callable[[], Result]) -> Result | str:
    """The result of `read`, or in one line why there is none, whatever it raises."""
    try:
        return read()
    except ImageError as problem:
        return problem.message
    except OSError as problem:
        return f"cannot be read: {os_reason(problem)}"
    except Exception as problem:  # one odd image must not end a run over a million
        return one_line(problem)
