"""The precision in which the towers are trained."""

from __future__ import annotations

import time
from typing import Literal

import torch

from cloob_cli.errors import DeviceError

Precision = Literal["fp32", "bf16", "fp16"]

# Casts between dtypes eat much of what the faster products gain. Measured on one Xeon core, a step of the
# pictogram recipe: with AMX products 20 times as fast and the step 2.1 times; with AVX512-BF16 alone 0.7 and 0.8 times;
# without either 0.2 and 0.35 times.
_WORTHWHILE = 3.0


def pick_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """`name`, or for "auto" the fastest precision that trains stably on `device`.

    CUDA: bf16 where the card computes it, else fp16. CPU: bf16 where its matrix products are measured to be far
    faster than float32's (Intel AMX), else fp32. MPS: fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and bf16_speedup() >= _WORTHWHILE:
        return "bf16"
    return "fp32"


def check_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> None:
    """Raise DeviceError where a device cannot train in the precision of that name.

    Accelerate says so of some; on a CPU its newer versions train in fp32 where fp16 is asked for, without a word.
    """
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("cpu does not train in fp16", 'set train.precision = "auto"')


def bf16_speedup(size: int = 768) -> float:
    """Measure how much faster than float32 this CPU multiplies bf16 matrices, a ratio (best of a few, milliseconds)."""
    matrix = torch.ones(size, size)
    return _seconds(matrix) / _seconds(matrix.bfloat16())


def _seconds(matrix: torch.Tensor, tries: int = 5) -> float:
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)
