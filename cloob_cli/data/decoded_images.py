"""Decoded training images: the decoder, and a cache that keeps every image as it is before its random changes."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from cloob_cli.data.augment import crop_boxes, crops, move, resized_crop, resized_crops
from cloob_cli.data.pairs import PairSource
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.errors import ImageError
from cloob_cli.parallel import map_in_order
from cloob_cli.recipe import AugmentSection

_MEMORY_FRACTION = 0.4  # of what is free, at most so much is taken without being asked
_DEVICE_FRACTION = 0.25
_AT_ONCE = 64  # images that a thread decodes in one go
_TRIED = 32  # images that stand for all when their size is estimated


class ImageDecoder:
    """Decodes the image that random changes start from.

    Without random crops that is the image as inference would crop it; with them the whole image, made smaller only
    where it has many more pixels than the smallest crop needs.
    """

    def __init__(self, preprocess: Preprocess, augment: AugmentSection) -> None:
        self.size = preprocess.image_size
        self._preprocess = preprocess
        # A crop of `crop_scale[0]` of the area should still have `size` pixels a side.
        self._enough = math.ceil(self.size / math.sqrt(augment.crop_scale[0])) if crops(augment) else None

    def decode(self, source: PairSource, index: int) -> np.ndarray:
        """The image of one pair -> uint8 [H, W, 3]. Raises ImageError."""
        if self._enough is None:
            return self._preprocess.crop(source.image(index, self.size))
        image = source.image(index, self._enough)
        scale = 2 * self._enough / min(image.size)
        if scale < 1:
            width, height = (round(side * scale) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(image)


class ImageCache:
    """The decoded images of `pairs`, each decoded when it is first asked for and kept from then on.

    Rows are numbered as in `pairs`. Threads may load different rows at the same time.
    """

    def __init__(self, source: PairSource, decoder: ImageDecoder, pairs: np.ndarray) -> None:
        self.unreadable: dict[int, str] = {}  # row, reason
        self._source, self._decoder, self._pairs = source, decoder, pairs
        self._known = np.zeros(len(pairs), dtype=bool)
        self._tensor: torch.Tensor | None = None  # uint8 [n, H, W, 3], H and W those of the first image
        self._odd: dict[int, np.ndarray] = {}  # images of another size
        self._lock = threading.Lock()

    def load(self, rows: np.ndarray) -> None:
        """Decode those of `rows`, int64 [B], that are not known yet."""
        for row in rows[~self._known[rows]].tolist():
            try:
                self._put(row, self._decoder.decode(self._source, int(self._pairs[row])))
            except ImageError as problem:
                self.unreadable[row] = problem.message
            self._known[row] = True

    def move_to(self, device: torch.device, threads: int) -> None:
        """Decode everything now and keep it on `device`, if that is a GPU and a quarter of its free memory will do."""
        if device.type != "cuda":
            return
        self.load(np.arange(min(_AT_ONCE, len(self._pairs))))
        free, _ = torch.cuda.mem_get_info(device)
        if self._tensor is None or self._tensor.nbytes > free * _DEVICE_FRACTION:
            return
        parts = np.array_split(np.arange(len(self._pairs)), -(-len(self._pairs) // _AT_ONCE))
        for _ in map_in_order(self.load, parts, threads, ahead=2 * threads):
            pass
        if not self._odd:
            self._tensor = self._tensor.to(device)

    def take(self, rows: np.ndarray, random: np.ndarray, augment: AugmentSection, size: int) -> torch.Tensor:
        """Readable rows, int64 [B], at random crops, shifted and mirrored -> uint8 [B, S, S, 3] where they are kept."""
        if self._tensor is None:
            return torch.empty(0, size, size, 3, dtype=torch.uint8)  # nothing readable yet
        if not crops(augment) and size == self._decoder.size:
            return move(self._tensor, torch.from_numpy(rows).to(self._tensor.device), random, augment)
        if self._tensor.device.type == "cpu":
            kept = self._tensor.numpy()
            images = cropped([self._odd.get(row, kept[row]) for row in rows.tolist()], random, augment, size)
        else:
            height, width = self._tensor.shape[1:3]
            boxes = _boxes(np.tile([[width, height]], (len(rows), 1)), random, augment)
            images = resized_crops(self._tensor[torch.from_numpy(rows).to(self._tensor.device)], boxes, size)
        return move(images, torch.arange(len(images), device=images.device), random, augment)

    def _put(self, row: int, image: np.ndarray) -> None:
        with self._lock:
            if self._tensor is None:
                # Not touched before it is filled, so that memory is taken as images come.
                self._tensor = torch.from_numpy(np.zeros((len(self._pairs), *image.shape), dtype=np.uint8))
        if self._tensor.shape[1:] == image.shape:
            self._tensor[row] = torch.from_numpy(image)
        else:
            self._odd[row] = image


def cropped(images: list[np.ndarray], random: np.ndarray, augment: AugmentSection, size: int) -> torch.Tensor:
    """Crop decoded images, uint8 [H, W, 3] each -> uint8 [B, size, size, 3]: at random, or the whole."""
    result = np.empty((len(images), size, size, 3), dtype=np.uint8)
    if images:
        sizes = np.array([image.shape[1::-1] for image in images])
        for row, box in enumerate(_boxes(sizes, random, augment)):
            whole = not crops(augment) and images[row].shape[:2] == (size, size)
            result[row] = images[row] if whole else resized_crop(images[row], box, size)
    return torch.from_numpy(result)


def _boxes(sizes: np.ndarray, random: np.ndarray, augment: AugmentSection) -> np.ndarray:
    """`crop_boxes`, or the whole images where no random crops are asked for."""
    if crops(augment):
        return crop_boxes(sizes, random, augment)
    return np.concatenate([np.zeros(sizes.shape), sizes], axis=1)


def fits_in_memory(source: PairSource, decoder: ImageDecoder, pairs: np.ndarray, processes: int) -> bool:
    """True where all decoded images, once a process, take at most 0.4 of the memory that is free."""
    sizes = []
    for index in pairs[np.linspace(0, len(pairs) - 1, _TRIED).astype(np.int64)].tolist():
        try:
            sizes.append(decoder.decode(source, index).nbytes)
        except ImageError:
            continue
    if not sizes:
        return False
    return float(np.mean(sizes)) * len(pairs) * processes <= _free_memory() * _MEMORY_FRACTION


def _free_memory() -> int:
    """Bytes: what the machine has free, or what a container's limit (control groups, version 2) leaves."""
    free: int = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(free, int(limit) - used) if limit != "max" else free
    except (OSError, ValueError):
        return free
