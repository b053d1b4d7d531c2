"""Folders of pictures as batches of decoded pixels, in order, in memory that does not grow with the folder.

Threads decode: Pillow lets go of the interpreter's lock while it decodes and resizes, so they keep as many cores busy
as processes would, without a second copy of torch in each and without sending pixels between processes.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cloob_cli.data.folder import list_images
from cloob_cli.data.images import Preprocess, open_image
from cloob_cli.errors import ImageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A picture that was skipped: its path as text, and why."""

    path: str
    reason: str


# Called for every picture in order, as soon as it was read: with None, or with why it was skipped.
OnPicture = Callable[[Failure | None], None]


@dataclass
class PictureBatch:
    """Consecutive pictures: `paths` and `pixels` of the readable ones, uint8 [B, H, W, 3], and the others' failures.

    B may be 0 where the last ones of a folder are all unreadable.
    """

    paths: list[str]
    pixels: Tensor
    failures: list[Failure] = field(default_factory=list)


def collect_pictures(sources: Sequence[Path]) -> list[Path]:
    """The pictures that paths of pictures and folders mean, each file once, in the order of the arguments.

    Raises:
        InputError: no such file or folder.
        NothingFoundError: a folder without a picture.
    """
    return list(dict.fromkeys(path for source in sources for path in list_images(source)))


def path_text(path: Path) -> str:
    """A path as text that every format can hold; bytes of a name that are no UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace") if os.name == "posix" else str(path)


def default_workers() -> int:
    """As many threads as this process may use cores."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 32)


def picture_batches(
    paths: Iterable[Path],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int | None = None,
    fast_jpeg: bool = False,
    on_picture: OnPicture | None = None,
) -> Generator[PictureBatch]:
    """Decode, resize and crop pictures; at most two batches are held at any time.

    Args:
        workers: threads; 0 decodes in the caller's thread; None picks by the number of cores.
        fast_jpeg: decode a JPEG at 1/2, 1/4 or 1/8 of its size where both sides stay at least twice the model's.

    Yields:
        Batches of `batch_size` readable pictures (the last may be smaller), in the order of `paths`.
    """
    count = default_workers() if workers is None else workers
    size_hint = 2 * preprocess.image_size if fast_jpeg else None

    def read(path: Path) -> np.ndarray | Failure:
        return _read(path, preprocess, size_hint)

    paths = iter(paths)
    size = preprocess.image_size
    batch = PictureBatch([], torch.empty(0, size, size, 3, dtype=torch.uint8))
    crops: list[np.ndarray] = []
    for path, result in _map_in_order(read, paths, count, ahead=batch_size + count):
        if on_picture:
            on_picture(result if isinstance(result, Failure) else None)
        if isinstance(result, Failure):
            batch.failures.append(result)
            continue
        batch.paths.append(path_text(path))
        crops.append(result)
        if len(crops) == batch_size:
            yield _complete(batch, crops)
            batch, crops = PictureBatch([], batch.pixels[:0]), []
    if crops or batch.failures:
        yield _complete(batch, crops)


def _complete(batch: PictureBatch, crops: list[np.ndarray]) -> PictureBatch:
    if crops:
        batch.pixels = torch.from_numpy(np.stack(crops))
    return batch


def _map_in_order(
    function: Callable[[Path], Result], items: Iterator[Path], workers: int, ahead: int
) -> Generator[tuple[Path, Result]]:
    """(item, function(item)) in the order of `items`, with at most `ahead` results waiting."""
    if workers == 0:
        yield from ((item, function(item)) for item in items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[Path, Future[Result]]] = deque()
    try:
        waiting.extend((item, pool.submit(function, item)) for item in islice(items, ahead))
        while waiting:
            item, future = waiting.popleft()
            result = future.result()
            waiting.extend((item, pool.submit(function, item)) for item in islice(items, 1))
            yield item, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(path: Path, preprocess: Preprocess, size_hint: int | None) -> np.ndarray | Failure:
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("not a regular file")
        return preprocess.crop(open_image(path, size_hint))
    except ImageError as problem:
        reason = problem.message
    except OSError as problem:
        reason = f"cannot be read: {(problem.strerror or str(problem)).lower()}"
    except Exception as problem:  # one odd picture must not end a run over a million
        reason = f"{type(problem).__name__}: {problem}"
    return Failure(path_text(path), reason)
