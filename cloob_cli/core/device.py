"""The choice of device and precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from cloob_cli.errors import DeviceError
from cloob_cli.text_format import counted

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`, or the best one here: CUDA, then Apple's MPS, then the CPU.

    Raises:
        DeviceError: no device of that name, or this machine or this torch cannot use it.
    """
    if name in (None, "", "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _mps_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise DeviceError(f"unknown device '{name}'", "use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        _check_cuda(device)
    elif device.type == "mps" and not _mps_available():
        raise DeviceError("this machine has no MPS device", "leave --device out, or use cpu")
    elif device.type not in {"cpu", "mps"}:
        raise DeviceError(f"device '{name}' is not supported", "use auto, cpu, cuda, cuda:1 or mps")
    return device


def pick_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """The dtype for inference: `name` (fp32, fp16, bf16), or fp16 on CUDA and fp32 elsewhere.

    float16 on CUDA keeps cosines to about 1e-3 and doubles the rate; on a CPU float32 is the exact and safe choice.

    Raises:
        DeviceError: no such precision.
    """
    if name in (None, "", "auto"):
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in PRECISIONS:
        raise DeviceError(f"unknown precision '{name}'", f"use auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[str(name)]


def device_text(device: torch.device) -> str:
    """A device for people: with its threads, or the name of the GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({counted(threads, 'thread')})" if device.type == "cpu" else str(device)


@cache
def has_narrow_products(device: torch.device) -> bool:
    """Find out, by doing it once, if bfloat16 matrices can be multiplied and added to a float32 one in place.

    CUDA can in newer torch; where some versions have the product, they cannot add it to a float32 matrix.
    """
    operand = torch.arange(-128.0, 128.0, device=device).view(16, 16) / 64  # exact in bfloat16
    with torch.autocast(device.type, enabled=False):
        expected = 1 + 0.5 * operand @ operand
    result = torch.ones_like(operand)
    narrow = operand.bfloat16()
    try:
        torch.addmm(result, narrow, narrow, out_dtype=torch.float32, alpha=0.5, out=result)
    except Exception:  # the overload may be missing, or refuse dtypes or devices
        return False
    return torch.allclose(result, expected, rtol=1e-5, atol=1e-5)


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Round the operands of CUDA's float32 products to tf32, or not, whatever the program around has set."""
    cuda, cpu = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    if cpu is None or not hasattr(cuda, "fp32_precision"):  # torch before 2.9
        former = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(former)
        return
    before = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision, cpu.fp32_precision = "tf32" if tf32 else "ieee", "ieee"
    try:
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        why = "no GPU is visible" if torch.version.cuda else "this torch was built without CUDA"
        raise DeviceError(f"cannot use {device}: {why}", "leave --device out, or see `cloob doctor`")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise DeviceError(f"there is no {device}: this machine has {count} CUDA device(s)")


def _mps_available() -> bool:
    return torch.backends.mps.is_available()
