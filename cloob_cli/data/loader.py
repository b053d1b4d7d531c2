"""Batches of training pairs.

What is in a batch follows from (seed, epoch) and its number alone: not from the number of workers or processes, nor
from whether the pictures are kept in memory. Kept pictures are decoded once and whole batches assembled by array
operations, on the training device where they fit; otherwise worker processes read, decode and tokenise.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any, Literal

import numpy as np
import torch

from cloob_cli.data.augment import DRAWS, draw, move, recolour
from cloob_cli.data.captions import CaptionStore, caption_id, pick
from cloob_cli.data.images import Preprocess
from cloob_cli.data.order import block_windows, epoch_order, uniforms
from cloob_cli.data.pairs import PairSource
from cloob_cli.data.pictures import Bases, PictureStore, cropped, fits_in_memory
from cloob_cli.data.text import Tokenizer
from cloob_cli.errors import DataError, ImageError
from cloob_cli.recipe import AugmentSection

_CHUNK = 256  # pairs that a worker hands over at once: large enough to be cheap, small enough to spread a batch
_BY_CHANCE = 8  # unreadable pairs that may be all of a process's small share of a batch
_AHEAD = 2  # batches that are assembled while one is trained on

Skipped = tuple[str, str]  # name, reason


@dataclass
class PairBatch:
    """A rank's share of one batch. `b` is its size less the pairs that could not be read.

    Attributes:
        pixels: uint8 [b, 3, H, W], not yet normalised (`images.normalise`); in channels-last memory order, and on the
            loader's device where the pictures are kept there.
        tokens: int64 [b, context].
        indices: int64 [b], which pairs of the source.
        caption_ids: int64 [b], equal for equal captions.
        skipped: name and reason of each pair that is missing.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    indices: torch.Tensor
    caption_ids: torch.Tensor
    skipped: list[Skipped] = field(default_factory=list)


class PairLoader:
    """Batches of `source`, in an order that is a pure function of (seed, epoch).

    Args:
        indices: int64 [n], the pairs to use; None: all.
        batch_size: pairs in a batch of all processes together. Rank r of W gets a contiguous share of each.
        workers: processes (or threads, where the pictures are in memory) that prepare batches; "auto": by cores.
        in_memory: keep the decoded pictures; "auto": where they take at most a part of the free memory.
        device: where the batches go. Kept pictures are moved there where they fit, and changed there.

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
        device: torch.device | None = None,
    ) -> None:
        self._pairs = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(self._pairs) < batch_size:
            raise DataError(
                f"{len(self._pairs)} training pairs are fewer than one batch of {batch_size}", "lower train.batch_size"
            )
        self._source, self._seed, self._batch_size = source, seed, batch_size
        self._share = slice(batch_size * rank // processes, batch_size * (rank + 1) // processes)
        self._workers = _worker_count(processes) if workers == "auto" else workers
        reader = _Reader(source, tokenizer, Bases(preprocess, augment), augment, seed)
        if in_memory == "auto":
            in_memory = fits_in_memory(source, reader.bases, self._pairs, processes)
        self._read: Callable[[int, list[np.ndarray]], Iterator[PairBatch]]
        if in_memory:
            self._read = _Memory(reader, self._pairs, self._workers, device or torch.device("cpu")).batches
        else:
            self._read = _Stream(reader, self._workers).batches
        self.in_memory: bool = in_memory

    @property
    def batches_per_epoch(self) -> int:
        return len(self._pairs) // self._batch_size

    @property
    def share(self) -> int:
        """Pairs of each batch that are this process's."""
        return self._share.stop - self._share.start

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[PairBatch]:
        """The batches of an epoch from number `first_batch` on; what comes before is not read.

        The last pairs of the order, fewer than a batch, are left out in this epoch.

        Raises:
            DataError: not one pair of this process's share of a batch can be read, and the share is not tiny.
        """
        order = self._order(epoch)
        starts = range(first_batch * self._batch_size, self.batches_per_epoch * self._batch_size, self._batch_size)
        wanted = [order[start : start + self._batch_size][self._share] for start in starts]
        for batch in self._read(epoch, wanted):
            if not len(batch.indices) and len(batch.skipped) > _BY_CHANCE:
                name, reason = batch.skipped[0]
                raise DataError(f"not one of the {len(batch.skipped)} pairs of a batch can be read; {name}: {reason}")
            yield batch

    def _order(self, epoch: int) -> np.ndarray:
        windows = None
        if self._source.blocks is not None:
            blocks, in_window = self._source.blocks
            windows = block_windows(blocks[self._pairs], in_window, self._seed, epoch)
        return self._pairs[epoch_order(len(self._pairs), self._seed, epoch, windows)]


class _Reader:
    """Reads and changes pairs one by one; what a worker process is sent."""

    def __init__(
        self, source: PairSource, tokenizer: Tokenizer, bases: Bases, augment: AugmentSection, seed: int
    ) -> None:
        self.source, self.tokenizer, self.bases, self.augment, self.seed = source, tokenizer, bases, augment, seed

    def __getitem__(self, key: tuple[int, np.ndarray]) -> PairBatch:
        """Pairs of one epoch, (epoch, int64 [b]) -> their part of a batch. (The name is DataLoader's.)"""
        epoch, pairs = key
        kept, pictures, texts, skipped = [], [], [], []
        for index in pairs.tolist():
            try:
                captions = self.source.captions(index)
                if not captions:
                    raise ImageError("no caption")
                pictures.append(self.bases.of(self.source, index))
                texts.append(captions)
                kept.append(index)
            except ImageError as problem:
                skipped.append((self.source.name(index), problem.message))
        numbers = np.array(kept, dtype=np.int64)
        random = uniforms(self.seed, epoch, numbers, len(DRAWS))
        choices = pick(draw(random, "caption"), np.array([len(t) for t in texts], dtype=np.int64))
        rows = self.tokenizer.rows([captions[choice] for captions, choice in zip(texts, choices, strict=True)])
        bases = cropped(pictures, random, self.augment, self.bases.size)
        moved = move(bases, torch.arange(len(bases)), random, self.augment)
        return PairBatch(
            recolour(moved, random, self.augment).permute(0, 3, 1, 2),
            self.tokenizer.padded(rows),
            torch.from_numpy(numbers),
            torch.tensor([caption_id(row) for row in rows], dtype=torch.int64),
            skipped,
        )


class _Stream:
    """Batches read anew each time, by worker processes that live as long as the loader."""

    def __init__(self, reader: _Reader, workers: int) -> None:
        self.keys: list[tuple[int, np.ndarray]] = []
        options: dict = {}
        if workers:
            # Forking a process that has threads (tokenizers, Arrow, CUDA) can hang; a clean server forks instead.
            context: BaseContext = multiprocessing.get_context("spawn")
            if sys.platform == "linux":
                context = _fork_server()
            options = {"multiprocessing_context": context, "persistent_workers": True, "worker_init_fn": _start_worker}
        with _as_many_workers_as_asked():
            self._loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
                reader,  # type: ignore[arg-type]
                batch_size=None,
                sampler=_Keys(self),
                collate_fn=_unchanged,
                num_workers=workers,
                **options,
            )

    def batches(self, epoch: int, wanted: list[np.ndarray]) -> Iterator[PairBatch]:
        self.keys = [(epoch, part) for pairs in wanted for part in _parts(pairs)]
        with _as_many_workers_as_asked():
            parts = iter(self._loader)
        for pairs in wanted:
            yield _joined([next(parts) for _ in _parts(pairs)])


class _Keys:
    """A sampler whose keys are set anew for every epoch, so that workers need not be started anew."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return iter(self._stream.keys)

    def __len__(self) -> int:
        return len(self._stream.keys)


class _Memory:
    """Batches of pictures that are kept decoded, assembled ahead by threads."""

    def __init__(self, reader: _Reader, pairs: np.ndarray, workers: int, device: torch.device) -> None:
        self._reader = reader
        self._threads = max(1, workers)
        self._rows = np.full(len(reader.source), -1, dtype=np.int64)
        self._rows[pairs] = np.arange(len(pairs))
        self._captions = CaptionStore(
            (_captions_or_none(reader.source, index) for index in pairs.tolist()), reader.tokenizer
        )
        self._pictures = PictureStore(reader.source, reader.bases, pairs)
        self._pictures.move_to(device, self._threads)

    def batches(self, epoch: int, wanted: list[np.ndarray]) -> Iterator[PairBatch]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="pairs") as pool:
            waiting: deque[Future[PairBatch]] = deque()
            try:
                for pairs in wanted:
                    waiting.append(pool.submit(self._batch, epoch, pairs))
                    if len(waiting) > self._threads + _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _batch(self, epoch: int, pairs: np.ndarray) -> PairBatch:
        reader = self._reader
        rows = self._rows[pairs]
        self._pictures.load(rows)
        reasons = [self._reason(row) for row in rows.tolist()]
        skipped = [(reader.source.name(pair), why) for pair, why in zip(pairs.tolist(), reasons, strict=True) if why]
        if skipped:
            usable = np.array([why is None for why in reasons])
            pairs, rows = pairs[usable], rows[usable]
        random = uniforms(reader.seed, epoch, pairs, len(DRAWS))
        tokens, caption_ids = self._captions.batch(rows, draw(random, "caption"))
        pictures = recolour(self._pictures.take(rows, random, reader.augment), random, reader.augment)
        return PairBatch(
            pictures.permute(0, 3, 1, 2),
            torch.from_numpy(tokens),
            torch.from_numpy(pairs),
            torch.from_numpy(caption_ids),
            skipped,
        )

    def _reason(self, row: int) -> str | None:
        """Why a pair cannot be used, if so."""
        return self._pictures.unreadable.get(row) if self._captions.has(row) else "no caption"


def _captions_or_none(source: PairSource, index: int) -> list[str]:
    try:
        return source.captions(index)
    except ImageError:
        return []


def _parts(pairs: np.ndarray) -> list[np.ndarray]:
    return [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)] or [pairs]


def _joined(parts: list[PairBatch]) -> PairBatch:
    if len(parts) == 1:
        return parts[0]
    return PairBatch(
        torch.cat([part.pixels for part in parts]),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.indices for part in parts]),
        torch.cat([part.caption_ids for part in parts]),
        [entry for part in parts for entry in part.skipped],
    )


def _fork_server() -> BaseContext:
    """Start the process that forks workers, so that they are deaf to Ctrl-C from their first moment on."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cloob_cli.data.loader"])
    if threading.current_thread() is threading.main_thread():  # only there can signals be set
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def _as_many_workers_as_asked() -> Iterator[None]:
    """A recipe may well ask for more workers than cores, where reading waits for a disk: no warning of that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _worker_count(processes: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, cores // processes - 1))
