"""Decoded training pictures: what is kept of each before its random changes, and a store that keeps all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from PIL import Image

from cloob_cli.data.augment import crop_boxes, crops, resized_crop, resized_crops
from cloob_cli.data.images import Preprocess
from cloob_cli.data.pairs import PairSource
from cloob_cli.errors import DataError, ImageError
from cloob_cli.recipe import AugmentSection

_SHARE_OF_MEMORY = 0.4  # of what is free, at most so much is taken without being asked
_SHARE_OF_DEVICE = 0.25
_AT_ONCE = 64  # pictures that a thread decodes in one go
_TRIED = 32  # pictures that stand for all when their size is estimated


class Bases:
    """What random changes start from: without random crops the picture as inference would crop it; with them the
    whole picture, made smaller where it has more pixels than the smallest crop needs.
    """

    def __init__(self, preprocess: Preprocess, augment: AugmentSection) -> None:
        self.size = preprocess.image_size
        self._preprocess = preprocess
        # A crop of `crop_scale[0]` of the area should still have `size` pixels a side.
        self._short = math.ceil(self.size / math.sqrt(augment.crop_scale[0])) if crops(augment) else None

    def of(self, source: PairSource, index: int) -> np.ndarray:
        """The picture of one pair -> uint8 [H, W, 3]. Raises ImageError."""
        if self._short is None:
            return self._preprocess.crop(source.image(index, self.size))
        image = source.image(index, self._short)
        short = min(image.size)
        if short > self._short:
            width, height = (max(1, round(side * self._short / short)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(image)


class PictureStore:
    """All pictures of `pairs`, decoded by threads; `unreadable` tells which row could not be read and why.

    Raises:
        DataError: not one can be read.
    """

    def __init__(
        self,
        source: PairSource,
        bases: Bases,
        pairs: np.ndarray,
        threads: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.unreadable: dict[int, str] = {}
        self._size, self._count = bases.size, len(pairs)
        self._array: np.ndarray | None = None  # [n, H, W, 3] while all pictures have one size
        self._loose: list[np.ndarray] = []  # else one array a picture

        def decode(start: int) -> list[np.ndarray | str]:
            found: list[np.ndarray | str] = []
            for index in pairs[start : start + _AT_ONCE].tolist():
                try:
                    found.append(bases.of(source, index))
                except ImageError as problem:
                    found.append(problem.message)
            return found

        with ThreadPoolExecutor(threads) as pool:
            starts = range(0, len(pairs), _AT_ONCE)
            # Batches of tasks, so that decoded pictures do not pile up in front of the one who stores them.
            for first in range(0, len(starts), threads * 4):
                some = starts[first : first + threads * 4]
                for start, found in zip(some, pool.map(decode, some), strict=True):
                    for row, picture in enumerate(found, start=start):
                        if isinstance(picture, str):
                            self.unreadable[row] = picture
                        else:
                            self._put(row, picture)
                    if on_progress is not None:
                        on_progress(min(start + _AT_ONCE, len(pairs)), len(pairs))
        if len(self.unreadable) == len(pairs):
            raise DataError(f"not one of {len(pairs)} pictures can be read; the first: {self.unreadable[0]}")
        self.tensor: torch.Tensor | None = torch.from_numpy(self._array) if self._array is not None else None

    @property
    def device(self) -> torch.device:
        return self.tensor.device if self.tensor is not None else torch.device("cpu")

    def move_to(self, device: torch.device) -> None:
        """Keep the pictures on `device` from now on, if it is a GPU and they take at most a quarter of what is free."""
        if self.tensor is None or device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self.tensor.nbytes <= free * _SHARE_OF_DEVICE:
            self.tensor = self.tensor.to(device)
            self._array = None

    def crop(self, rows: np.ndarray, random: np.ndarray, augment: AugmentSection) -> torch.Tensor:
        """Random crops of the pictures in `rows`, int64 [B] -> uint8 [B, S, S, 3] where the pictures are."""
        if self.tensor is not None and self.tensor.device.type != "cpu":
            height, width = self.tensor.shape[1:3]
            boxes = crop_boxes(np.tile([[width, height]], (len(rows), 1)), random, augment)
            return resized_crops(self.tensor[torch.from_numpy(rows).to(self.device)], boxes, self._size)
        pictures = self._loose if self._array is None else self._array
        return cropped([pictures[row] for row in rows.tolist()], random, augment, self._size)

    def _put(self, row: int, picture: np.ndarray) -> None:
        if self._array is None and not self._loose:
            self._array = np.zeros((self._count, *picture.shape), dtype=np.uint8)
        if self._array is not None and self._array.shape[1:] == picture.shape:
            self._array[row] = picture
            return
        if self._array is not None:
            self._loose, self._array = list(self._array), None
        self._loose[row] = picture


def cropped(pictures: list[np.ndarray], random: np.ndarray, augment: AugmentSection, size: int) -> torch.Tensor:
    """Bases, uint8 [H, W, 3] each -> uint8 [B, size, size, 3]: at random or, without random crops, as they are."""
    result = np.empty((len(pictures), size, size, 3), dtype=np.uint8)
    if not crops(augment):
        for row, picture in enumerate(pictures):
            result[row] = picture
    elif pictures:
        sizes = np.array([picture.shape[1::-1] for picture in pictures])
        for row, box in enumerate(crop_boxes(sizes, random, augment)):
            result[row] = resized_crop(pictures[row], box, size)
    return torch.from_numpy(result)


def fits_in_memory(source: PairSource, bases: Bases, pairs: np.ndarray, processes: int) -> bool:
    """Whether all decoded pictures, once a process, take at most 0.4 of the memory that is free."""
    sizes = []
    for index in pairs[np.linspace(0, len(pairs) - 1, _TRIED).astype(np.int64)].tolist():
        try:
            sizes.append(bases.of(source, index).nbytes)
        except ImageError:
            continue
    if not sizes:
        return False
    return float(np.mean(sizes)) * len(pairs) * processes <= _free_memory() * _SHARE_OF_MEMORY


def _free_memory() -> int:
    """Bytes: what the machine has free, or what a container's limit (control groups, version 2) leaves."""
    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(free, int(limit) - used) if limit != "max" else free
    except (OSError, ValueError):
        return free
