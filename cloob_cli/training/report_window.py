"""The steps between two reports of a run: losses, gradient norms, time, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


class Window:
    """The steps between two reports: their losses and gradient norms, and their time.

    The numbers stay on the device until they are asked for, so that a GPU need not wait after every step.
    """

    def __init__(self) -> None:
        self.images = 0
        self.waited = 0.0
        self._started = time.monotonic()
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, norm: torch.Tensor, images: int) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self.images += images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        start = time.monotonic()
        yield
        self._started += time.monotonic() - start

    def losses(self) -> list[float]:
        return torch.stack(self._losses).float().tolist() if self._losses else []

    def norms(self) -> list[float]:
        return torch.stack(self._norms).float().tolist() if self._norms else []

    def seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)


def memory_gib(device: torch.device) -> float:
    """Peak memory on a CUDA device, else what this process holds now, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
