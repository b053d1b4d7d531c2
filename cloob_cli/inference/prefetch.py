"""Prefetch batches of images to a GPU: the next one is copied while the current one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from cloob_cli.inference.image_batches import ImageBatch


def prefetched(batches: Iterable[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Yield batches in their order, their pixels on `device`; anywhere but on a CUDA device they stay as they are.

    A batch is copied from page-locked memory on a stream of its own, beside what is computed of the batch before. One
    more batch is held, and every batch comes when the next one was read.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)

    def start_copy(batch: ImageBatch) -> tuple[ImageBatch, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            copied = replace(batch, pixels=batch.pixels.pin_memory().to(device, non_blocking=True))
            return copied, copies.record_event()

    def finish_copy(batch: ImageBatch, copy_done: torch.cuda.Event) -> ImageBatch:
        current = torch.cuda.current_stream(device)
        current.wait_event(copy_done)  # of this batch alone: the next one's copy goes on
        batch.pixels.record_stream(current)  # else its memory is free to the other stream as soon as it is dropped
        return batch

    waiting: tuple[ImageBatch, torch.cuda.Event] | None = None
    for batch in batches:
        following = start_copy(batch)
        if waiting is not None:
            yield finish_copy(*waiting)
        waiting = following
    if waiting is not None:
        yield finish_copy(*waiting)
