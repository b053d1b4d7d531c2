"""Batches that are read anew each time, by worker processes that read, decode, change and tokenize."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch

from cloob_cli.data.batch import PairBatch, PairReader
from cloob_cli.errors import DataError

_CHUNK = 256  # pairs that a worker hands over at once: large enough to be cheap, small enough to spread a batch


class PairStream:
    """Batches read anew each time, by worker processes that live as long as the loader."""

    def __init__(self, reader: PairReader, workers: int) -> None:
        self._keys = _Keys()
        options: dict[str, Any] = {}
        if workers:
            # Forking a process that has threads (tokenizers, Arrow, CUDA) can hang; a clean server forks instead.
            context: BaseContext = multiprocessing.get_context("spawn")
            if sys.platform == "linux":
                context = _fork_server()
            options = {"multiprocessing_context": context, "persistent_workers": True, "worker_init_fn": _start_worker}
        with _as_many_workers_as_asked():
            self._loader: torch.utils.data.DataLoader[PairBatch] = torch.utils.data.DataLoader(
                reader,  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._keys,
                collate_fn=_unchanged,
                num_workers=workers,
                generator=torch.Generator(),  # its seed for workers must not be drawn from the training's
                **options,
            )

    def batches(self, epoch: int, requests: list[tuple[np.ndarray, int]]) -> Iterator[PairBatch]:
        """Yield the batch of each of (int64 [b] pairs, size of their images)."""
        self._keys.of_epoch = [(epoch, part, size) for pairs, size in requests for part in _parts(pairs)]
        with _telling_of_lost_workers(), _as_many_workers_as_asked():
            parts = iter(self._loader)  # from the second epoch on this waits for each worker
        for pairs, _ in requests:
            with _telling_of_lost_workers():
                batch = _joined([next(parts) for _ in _parts(pairs)])
            yield batch


class _Keys:
    """A sampler whose keys are set anew for every epoch, so that workers need not be started anew.

    It does not know its stream: the two would be a cycle, and of what garbage collection finds in a cycle the queues
    are closed first. Workers would then never be told to end, and waited for in vain: five seconds each.
    """

    def __init__(self) -> None:
        self.of_epoch: list[tuple[int, np.ndarray, int]] = []

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, int]]:
        return iter(self.of_epoch)

    def __len__(self) -> int:
        return len(self.of_epoch)


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
    context.set_forkserver_preload(["cloob_cli.data.streaming"])
    if threading.current_thread() is threading.main_thread():  # only there can signals be set
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with _quiet_tracker():
                forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Silence multiprocessing's tracker, which frees the semaphores of a killed process and warns that it has to."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


@contextmanager
def _as_many_workers_as_asked() -> Iterator[None]:
    """Silence the warning of more workers than cores: a recipe may ask for them where reading waits for a disk."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


@contextmanager
def _telling_of_lost_workers() -> Iterator[None]:
    """A worker that was killed shows in several ways: torch finds it gone, or the pipe to it breaks while a batch of
    its is fetched. All of them are one error here. (What went wrong inside a living worker begins with "Caught".)
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as problem:
        text = str(problem)
        known = text.startswith("DataLoader worker (pid") or "unable to open shared memory" in text
        if text.startswith("Caught ") or (isinstance(problem, RuntimeError) and not known):
            raise
        raise DataError(
            "a process that reads images was ended from outside, most likely for want of memory", "lower data.workers"
        ) from None


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, name="parent's end", daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that asked for this worker, then end as well.

    Nothing else would: under a fork server the worker's parent by number is the server, and the server lives as long
    as a worker does. What the sentinel stands on, a pipe or a handle, the system closes even for a process that is
    killed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
