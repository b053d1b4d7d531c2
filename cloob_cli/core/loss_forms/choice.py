"""Which form of the loss serves where: one table, and the reason in words."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch

from cloob_cli.core.loss_forms.steps import Steps
from cloob_cli.errors import UsageError


@dataclass(frozen=True)
class DeviceSettings:
    """What serves best on a kind of device.

    `tiled_from`: the smallest joint batch for which the tiled form is at least as fast as the definition.
    `tile`, `chunk_elements`, `chunk_rows`: see `Steps`. A tile and its copies stay in the cache of a CPU core; a GPU's
    holds part of them.
    """

    tiled_from: int
    tile: tuple[int, int]
    chunk_elements: int
    chunk_rows: int = 1


# CPU: measured with tests/benchmarks/bench_loss.py. CUDA and MPS: derived from the sizes of their caches, and not
# measured yet. Fewer rows a chunk would add to the gradient of all partners more often than the products can cover.
SETTINGS = {
    "cpu": DeviceSettings(tiled_from=256, tile=(256, 512), chunk_elements=1 << 20, chunk_rows=64),
    "cuda": DeviceSettings(tiled_from=1024, tile=(2048, 4096), chunk_elements=1 << 23, chunk_rows=256),
    "mps": DeviceSettings(tiled_from=1024, tile=(1024, 2048), chunk_elements=1 << 22, chunk_rows=128),
}


@dataclass(frozen=True)
class Choice:
    """`name` is "definition", "tiled" or "triton"; `reason` is for the log."""

    name: str
    reason: str


def choose_implementation(
    device: torch.device, dtype: torch.dtype, batch: int, processes: int = 1, requested: str = "auto"
) -> Choice:
    """What `contrastive_loss` takes for a joint batch of `batch` pairs. `dtype` is the format of the arithmetic.

    "triton" is a wish: where its kernels cannot serve, the plain tiled form does, and the reason says why.

    Raises:
        UsageError: `requested` is none of auto, definition, tiled, triton.
    """
    if requested not in ("auto", "definition", "tiled", "triton"):
        raise UsageError(f"unknown implementation '{requested}'", "use auto, definition, tiled or triton")
    if requested in ("definition", "tiled"):
        return Choice(requested, "as asked for")
    smallest = _settings(device).tiled_from
    if requested == "auto" and processes == 1 and batch < smallest:
        return Choice("definition", f"{batch} pairs are fewer than {smallest}")
    if requested == "auto" and device.type != "cuda":
        return Choice("tiled", f"{batch} pairs on {device.type}")
    obstacle = _kernels_obstacle(device, dtype)
    if obstacle:
        return Choice("tiled", f"the Triton kernels cannot serve: {obstacle}")
    return Choice("triton", f"{batch} pairs on {device.type}")


def make_steps(choice: Choice, device: torch.device, dtype: torch.dtype, precision: str | None) -> Steps:
    """The steps of a tile for "tiled" or "triton"."""
    if choice.name == "triton":
        kind: type[Steps] = importlib.import_module("cloob_cli.core.loss_forms.triton_steps").TritonSteps
    else:
        kind = Steps
    settings = _settings(device)
    return kind(device, dtype, precision or "fp32", settings.tile, settings.chunk_elements, settings.chunk_rows)


def _settings(device: torch.device) -> DeviceSettings:
    return SETTINGS.get(device.type, SETTINGS["cuda"])


def _kernels_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype != torch.float32:
        return f"they compute in float32, not {str(dtype).removeprefix('torch.')}"
    try:
        check = importlib.import_module("cloob_cli.core.loss_forms.kernels_check")
    except ImportError:
        return "the package triton is not installed"
    return check.obstacle(device)
