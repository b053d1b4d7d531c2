"""Batches of training pairs.

What is in a batch follows from (seed, epoch) and its number alone: not from the number of workers or processes, nor
from whether the images are kept in memory. Kept images are decoded once and whole batches assembled by array
operations, on the training device where they fit; otherwise worker processes read, decode and tokenize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from cloob_cli.core.model_config import TextConfig
from cloob_cli.core.token_rows import cut_to_longest
from cloob_cli.data.augment import DRAWS, color_jitter
from cloob_cli.data.batch import PairBatch, PairReader
from cloob_cli.data.caption_tokens import CaptionStore, caption_numbers
from cloob_cli.data.decoded_images import ImageCache, ImageDecoder, fits_in_memory
from cloob_cli.data.feature_cache import FeatureTable
from cloob_cli.data.pairs import PairSource
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.random_numbers import uniforms
from cloob_cli.data.sample_order import block_windows, epoch_order
from cloob_cli.data.streaming import PairStream
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import DataError, Failure, ImageError
from cloob_cli.parallel import core_count, map_in_order
from cloob_cli.recipe import AugmentSection
from cloob_cli.text_format import counted

_AHEAD = 2  # batches that are assembled while one is trained on
_BY_CHANCE = 8  # unreadable pairs that may be all of a process's small part of a batch


class PairLoader:
    """Batches of `source`, in an order that is a pure function of (seed, epoch).

    Args:
        indices: int64 [n], the pairs to use; None: all.
        batch_size: pairs in a batch of all processes together. Rank r of W gets a contiguous part of each.
        workers: processes (or threads, where the images are in memory) that prepare batches; "auto": by cores.
        local_processes: those of `processes` that share this machine's cores and memory; left out: all of them.
        in_memory: keep the decoded images; "auto": where they take at most a part of the free memory.
        captions_per_image: captions that are drawn of each pair, none twice where the pair has enough.
        text: the tower that the tokens are for; rows are cut to what it reads (`core.token_rows`). None: not cut.
        device: where the batches go. Kept images are moved there where they fit, and changed there.
        image_features: those of the pairs by their index; no image is read then. None: images.
        text_features: those of captions by `data.captions.caption_id`. None: tokens.

    Raises:
        DataError: fewer pairs than a batch.
    """

    def __init__(
        self,
        source: PairSource,
        indices: np.ndarray | None,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        augment: AugmentSection,
        *,
        batch_size: int,
        seed: int,
        workers: int | Literal["auto"] = "auto",
        in_memory: bool | Literal["auto"] = "auto",
        rank: int = 0,
        processes: int = 1,
        local_processes: int | None = None,
        device: torch.device | None = None,
        captions_per_image: int = 1,
        text: TextConfig | None = None,
        image_features: FeatureTable | None = None,
        text_features: FeatureTable | None = None,
    ) -> None:
        self._pairs = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
        check_enough(len(self._pairs), batch_size)
        self._source, self._seed, self._batch_size, self._text = source, seed, batch_size, text
        self._local = slice(batch_size * rank // processes, batch_size * (rank + 1) // processes)
        local = local_processes or processes
        self._workers = worker_count(local) if workers == "auto" else workers
        reader = PairReader(source, tokenizer, ImageDecoder(preprocess, augment), augment, seed, captions_per_image)
        self._text_features = text_features
        if image_features is not None:
            in_memory = True
        elif in_memory == "auto":
            in_memory = fits_in_memory(source, reader.decoder, self._pairs, local)
        self._full_size = preprocess.image_size
        self._read: Callable[[int, list[tuple[np.ndarray, int]]], Iterator[PairBatch]]
        if image_features is not None:
            self._read = FeaturePairs(reader, self._pairs, self._workers, image_features).batches
        elif in_memory:
            self._read = CachedPairs(reader, self._pairs, self._workers, device or torch.device("cpu")).batches
        else:
            self._read = PairStream(reader, self._workers).batches
        self.in_memory: bool = in_memory

    @property
    def batches_per_epoch(self) -> int:
        return len(self._pairs) // self._batch_size

    @property
    def local_batch_size(self) -> int:
        """Pairs of each batch that are this process's, where none is unreadable."""
        return self._local.stop - self._local.start

    def batches(
        self, epoch: int, first_batch: int = 0, image_size: Callable[[int], int] | None = None
    ) -> Iterator[PairBatch]:
        """The batches of an epoch from number `first_batch` on; what comes before is not read.

        The last pairs of the order, fewer than a batch, are left out in this epoch.

        Args:
            image_size: pixels a side of the images of each batch, by its number; None: those of `preprocess`.

        Raises:
            DataError: not one pair of this process's part of a batch can be read, and the part is not tiny.
        """
        order = self._order(epoch)
        requests = []
        for number in range(first_batch, self.batches_per_epoch):
            pairs = order[number * self._batch_size : (number + 1) * self._batch_size][self._local]
            requests.append((pairs, image_size(number) if image_size else self._full_size))
        for batch in self._read(epoch, requests):
            if not len(batch.indices) and len(batch.skipped) > _BY_CHANCE:
                first = batch.skipped[0]
                raise DataError(
                    f"not one of the {len(batch.skipped)} pairs of a batch can be read; {first.name}: {first.reason}"
                )
            if self._text_features is not None:
                batch.tokens = torch.from_numpy(self._text_features(batch.caption_ids.numpy()))
            elif self._text is not None:
                batch.tokens = cut_to_longest(batch.tokens, self._text)
            yield batch

    def _order(self, epoch: int) -> np.ndarray:
        windows = None
        if self._source.blocks is not None:
            blocks, in_window = self._source.blocks
            windows = block_windows(blocks[self._pairs], in_window, self._seed, epoch)
        order: np.ndarray = self._pairs[epoch_order(len(self._pairs), self._seed, epoch, windows)]
        return order


class FeaturePairs:
    """Batches of pairs whose images are their tower's features, assembled ahead by threads."""

    def __init__(self, reader: PairReader, pairs: np.ndarray, workers: int, features: FeatureTable) -> None:
        self._reader, self._features = reader, features
        self._threads = max(1, workers)
        self._rows = np.full(len(reader.source), -1, dtype=np.int64)
        self._rows[pairs] = np.arange(len(pairs))
        self._captions = CaptionStore(
            (captions_or_none(reader.source, index) for index in pairs.tolist()), reader.tokenizer
        )

    def batches(self, epoch: int, requests: list[tuple[np.ndarray, int]]) -> Iterator[PairBatch]:
        """Yield the batch of each of (int64 [b] pairs, size of their images, which changes nothing)."""
        return map_in_order(lambda one: self._batch(epoch, one[0]), requests, self._threads, self._threads + _AHEAD)

    def _batch(self, epoch: int, pairs: np.ndarray) -> PairBatch:
        reader = self._reader
        reasons = [self._reason(pair) for pair in pairs.tolist()]
        skipped = [
            Failure(reader.source.name(pair), why) for pair, why in zip(pairs.tolist(), reasons, strict=True) if why
        ]
        pairs = pairs[np.array([why is None for why in reasons], dtype=bool)]
        random = uniforms(reader.seed, epoch, pairs, len(DRAWS))
        choosing = caption_numbers(reader.seed, epoch, pairs, random, reader.captions_per_image)
        tokens, caption_ids = self._captions.batch(self._rows[pairs], choosing)
        return PairBatch(
            torch.from_numpy(self._features(pairs)),
            torch.from_numpy(tokens),
            torch.from_numpy(pairs),
            torch.from_numpy(caption_ids),
            skipped,
        )

    def _reason(self, pair: int) -> str | None:
        """The reason why a pair cannot be used; None where it can."""
        return self._features.missing.get(pair) if self._captions.has(self._rows[pair]) else "no caption"


class CachedPairs:
    """Batches of images that are kept decoded, assembled ahead by threads in array operations."""

    def __init__(self, reader: PairReader, pairs: np.ndarray, workers: int, device: torch.device) -> None:
        self._reader = reader
        self._threads = max(1, workers)
        self._rows = np.full(len(reader.source), -1, dtype=np.int64)
        self._rows[pairs] = np.arange(len(pairs))
        self._captions = CaptionStore(
            (captions_or_none(reader.source, index) for index in pairs.tolist()), reader.tokenizer
        )
        self._images = ImageCache(reader.source, reader.decoder, pairs)
        self._images.move_to(device, self._threads)

    def batches(self, epoch: int, requests: list[tuple[np.ndarray, int]]) -> Iterator[PairBatch]:
        """Yield the batch of each of (int64 [b] pairs, size of their images)."""
        return map_in_order(lambda one: self._batch(epoch, *one), requests, self._threads, self._threads + _AHEAD)

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
        """The reason why a pair cannot be used; None where it can."""
        return self._images.unreadable.get(row) if self._captions.has(row) else "no caption"


def check_enough(pairs: int, batch_size: int) -> None:
    """Raise DataError where there are fewer pairs than a batch."""
    if pairs < batch_size:
        raise DataError(
            f"{counted(pairs, 'training pair')} {'is' if pairs == 1 else 'are'} fewer than one batch of {batch_size}",
            "lower train.batch_size",
        )


def worker_count(local_processes: int) -> int:
    """Processes that read for each of so many that train on this machine."""
    return min(16, max(1, core_count() // local_processes - 1))


def captions_or_none(source: PairSource, index: int) -> list[str]:
    """The captions of a pair; none where it cannot be read."""
    try:
        return source.captions(index)
    except ImageError:
        return []
