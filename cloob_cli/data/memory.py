"""Batches of images that are kept decoded: whole batches are assembled by array operations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from cloob_cli.data.augment import DRAWS, color_jitter
from cloob_cli.data.batch import PairBatch
from cloob_cli.data.captions import CaptionStore, caption_numbers
from cloob_cli.data.image_cache import ImageCache
from cloob_cli.data.order import uniforms
from cloob_cli.data.pairs import PairSource
from cloob_cli.data.streaming import PairReader
from cloob_cli.errors import Failure, ImageError
from cloob_cli.parallel import map_in_order

_AHEAD = 2  # batches that are assembled while one is trained on


class PairMemory:
    """Batches of images that are kept decoded, assembled ahead by threads."""

    def __init__(self, reader: PairReader, pairs: np.ndarray, workers: int, device: torch.device) -> None:
        self._reader = reader
        self._threads = max(1, workers)
        self._rows = np.full(len(reader.source), -1, dtype=np.int64)
        self._rows[pairs] = np.arange(len(pairs))
        self._captions = CaptionStore(
            (_captions_or_none(reader.source, index) for index in pairs.tolist()), reader.tokenizer
        )
        self._images = ImageCache(reader.source, reader.bases, pairs)
        self._images.move_to(device, self._threads)

    def batches(self, epoch: int, wanted: list[tuple[np.ndarray, int]]) -> Iterator[PairBatch]:
        """For each of (int64 [b] pairs, size of their images) the batch."""
        return map_in_order(lambda one: self._batch(epoch, *one), wanted, self._threads, self._threads + _AHEAD)

    def _batch(self, epoch: int, pairs: np.ndarray, size: int) -> PairBatch:
        reader = self._reader
        rows = self._rows[pairs]
        self._images.load(rows)
        reasons = [self._reason(row) for row in rows.tolist()]
        skipped = [
            Failure(reader.source.name(pair), why) for pair, why in zip(pairs.tolist(), reasons, strict=True) if why
        ]
        if skipped:
            usable = np.array([why is None for why in reasons])
            pairs, rows = pairs[usable], rows[usable]
        random = uniforms(reader.seed, epoch, pairs, len(DRAWS))
        choosing = caption_numbers(reader.seed, epoch, pairs, random, reader.captions_per_image)
        tokens, caption_ids = self._captions.batch(rows, choosing)
        augment = reader.augment_at(size)
        images = color_jitter(self._images.take(rows, random, augment, size), random, augment)
        return PairBatch(
            images.permute(0, 3, 1, 2),
            torch.from_numpy(tokens),
            torch.from_numpy(pairs),
            torch.from_numpy(caption_ids),
            skipped,
        )

    def _reason(self, row: int) -> str | None:
        """Why a pair cannot be used, if so."""
        return self._images.unreadable.get(row) if self._captions.has(row) else "no caption"


def _captions_or_none(source: PairSource, index: int) -> list[str]:
    try:
        return source.captions(index)
    except ImageError:
        return []
