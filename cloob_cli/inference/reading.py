"""Read folders of images as batches of decoded pixels, in order, in memory that does not grow with the folder.

Threads decode: Pillow lets go of the interpreter's lock while it decodes and resizes, so they keep as many cores busy
as processes would, without a second copy of torch in each and without sending pixels between processes.
"""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cloob_cli.data.decoding_memory import MemoryBudget, default_budget
from cloob_cli.data.image_folder import Watch, is_excluded, scan
from cloob_cli.data.images import Preprocess, read_crop
from cloob_cli.errors import Failure, ImageError, InputError, NothingFoundError, one_line
from cloob_cli.parallel import core_count, map_in_order
from cloob_cli.path_text import path_text
from cloob_cli.text_format import os_reason

_MOST_THREADS = 32


# Called for every image in order, as soon as it was read: with None, or with why it was skipped.
OnImage = Callable[[Failure | None], None]


@dataclass
class ImageBatch:
    """Consecutive readable images, `paths` and `pixels`, uint8 [B, H, W, 3], or (B is 0) one that is not readable."""

    paths: list[str]
    pixels: Tensor
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Collected:
    """Images to read and, in their places among them, failures: missing files and folders that cannot be listed.

    `passed_over` counts, by format, the image files that this installation cannot read.
    """

    items: list[Path | Failure] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def collect_images(sources: Sequence[Path], watch: Watch | None = None, exclude: Sequence[str] = ()) -> Collected:
    """Find the images among files and below folders, each file once, in the order of the arguments.

    `watch` is called with counts of files that were looked at. Patterns `exclude` leave out files and folders below
    the sources (`image_folder.is_excluded`), and files that are named themselves.

    Raises:
        InputError: none of `sources` gives an image; the error is the first one's.
    """
    found = Collected()
    seen: set[Path] = set()
    real = functools.cache(lambda folder: Path(os.path.realpath(folder)))
    errors: list[InputError] = []
    for source in sources:
        if exclude and is_excluded(source.as_posix(), exclude) and source.is_file():
            continue
        try:
            below = scan(source, watch, exclude)
        except InputError as problem:
            errors.append(problem)
            found.items.append(Failure(path_text(source), problem.message))
            continue
        found.passed_over += below.passed_over
        folders = dict(below.unreadable)
        for path in sorted([*below.images, *folders]):
            place = real(path.parent) / path.name  # links to a file are files of their own
            if place in seen:
                continue
            seen.add(place)
            reason = folders.get(path)
            failure = reason and Failure(path_text(path), f"the folder cannot be read: {reason}")
            found.items.append(failure or path)
    if errors and not any(isinstance(item, Path) for item in found.items) and len(errors) == len(found.items):
        raise errors[0]
    if not found.items:
        raise NothingFoundError("no image is left: --exclude leaves out all of them")
    return found


def image_batches(
    paths: Iterable[Path | Failure],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int | None = None,
    fast_jpeg: bool = False,
    memory_budget: int | None = None,
    on_image: OnImage | None = None,
) -> Generator[ImageBatch]:
    """Decode, resize and crop images; at most two batches are held at any time.

    Args:
        paths: the images; a failure among them is passed on in its place.
        workers: threads; 0 decodes in the caller's thread; None picks by the number of cores.
        memory_budget: bytes that decoding may take at a time; large images wait for their part, and those that need
            more are failures. None picks by the machine's memory.
        fast_jpeg: decode a JPEG at 1/2, 1/4 or 1/8 of its size where both sides stay at least twice the model's.

    Yields:
        Batches of `batch_size` readable images (the last may be smaller), in the order of `paths`, and each failure
        as soon as it is known, in a batch of its own.
    """
    count = min(core_count(), _MOST_THREADS) if workers is None else workers
    size_hint = 2 * preprocess.image_size if fast_jpeg else None
    budget = MemoryBudget(default_budget() if memory_budget is None else memory_budget)

    def read(path: Path | Failure) -> tuple[str, np.ndarray] | Failure:
        return path if isinstance(path, Failure) else _read(path, preprocess, budget, size_hint)

    size = preprocess.image_size
    nothing = torch.empty(0, size, size, 3, dtype=torch.uint8)
    read_paths: list[str] = []
    crops: list[np.ndarray] = []
    for result in map_in_order(read, paths, count, ahead=batch_size + count):
        if on_image:
            on_image(result if isinstance(result, Failure) else None)
        if isinstance(result, Failure):
            yield ImageBatch([], nothing, [result])
            continue
        read_paths.append(result[0])
        crops.append(result[1])
        if len(crops) == batch_size:
            yield ImageBatch(read_paths, torch.from_numpy(np.stack(crops)))
            read_paths, crops = [], []
    if crops:
        yield ImageBatch(read_paths, torch.from_numpy(np.stack(crops)))


def _read(
    path: Path, preprocess: Preprocess, budget: MemoryBudget, size_hint: int | None
) -> tuple[str, np.ndarray] | Failure:
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("not a regular file")
        return path_text(path), read_crop(path, preprocess, budget, size_hint)
    except ImageError as problem:
        reason = problem.message
    except OSError as problem:
        reason = f"cannot be read: {os_reason(problem)}"
    except Exception as problem:  # one odd image must not end a run over a million
        reason = one_line(problem)
    return Failure(path_text(path), reason)
