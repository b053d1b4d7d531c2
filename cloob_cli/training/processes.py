"""The processes of a run: joined, and what they tell one another beside gradients.

The main process alone reads the run's folder, so the folder need not be shared between nodes: what it finds is sent to
the others. With one process nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from cloob_cli import process_exchange
from cloob_cli.errors import CloobError, DeviceError, TrainingError, one_line
from cloob_cli.training.precision import Precision, check_precision

Result = TypeVar("Result")

# Rank 0 validates and saves while the others wait for it; the usual ten minutes can be too short for that.
_TIMEOUT = timedelta(hours=4)


def start_processes(device: torch.device) -> None:
    """Under a launcher, join the other processes of the run, so that they can exchange objects."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may have other settings
    if device.type == "cuda" and device.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    PartialState(cpu=device.type == "cpu", timeout=_TIMEOUT)


def start_accelerator(device: torch.device, precision: Precision) -> Accelerator:
    """Accelerate on `device`, or under `accelerate launch` on this process's own.

    Raises:
        DeviceError: the device does not train in this precision.
    """
    check_precision(precision, device)
    try:
        return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device.type == "cpu")
    except ValueError as problem:
        text = f"{device.type} does not train in {precision}: {problem}"
        raise DeviceError(text, 'set train.precision = "auto"') from None


def is_main() -> bool:
    """True in the process that reports and writes, also once the processes have parted."""
    if process_exchange.several():
        return distributed.get_rank() == 0
    return bool(PartialState().is_main_process) if PartialState._shared_state else True


def on_main(work: Callable[[], Result]) -> Result:
    """Run `work` in the main process alone and return its result in every process. Its errors are raised everywhere."""
    if not process_exchange.several():
        return work()
    box: list[Any] = [None, None]
    unexpected: Exception | None = None
    if is_main():
        try:
            box[0] = work()
        except CloobError as problem:
            box[1] = problem
        except Exception as problem:
            unexpected, box[1] = problem, TrainingError(f"process 0 failed: {one_line(problem)}")
    box = process_exchange.told(box)
    if unexpected is not None:
        raise unexpected
    if box[1] is not None:
        raise box[1]
    result: Result = box[0]
    return result


def agree(facts: Mapping[str, Any]) -> None:
    """Make sure that the facts are the same in every process.

    Raises:
        TrainingError: they are not; raised in every process, with the first difference.
    """
    told = process_exchange.gathered(dict(facts))
    for rank, other in enumerate(told):
        for name, value in told[0].items():
            if other.get(name) != value:
                raise TrainingError(
                    f"the processes differ in {name}: {value!r} in process 0, {other.get(name)!r} in process {rank}",
                    "every process needs the same recipe, data and version",
                )


@dataclass(frozen=True)
class _Outline:
    """Stands for a tensor that is sent after it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def send_tensors(read: Callable[[], Any], device: torch.device) -> Any:
    """The nested dicts and lists, with tensors in them, that `read` returns in the main process, in every process.

    Tensors go one at a time over `device` and end up on the CPU.
    """
    if not process_exchange.several():
        return read()
    sent: list[torch.Tensor] = []

    def outlined(tensor: torch.Tensor) -> _Outline:
        sent.append(tensor)
        return _Outline(tuple(tensor.shape), tensor.dtype)

    def exchanged(outline: _Outline) -> torch.Tensor:
        # As bytes, which every backend can send.
        if is_main():
            tensor = sent.pop(0)
            content = tensor.contiguous().reshape(-1).view(torch.uint8).to(device)
        else:
            tensor = torch.empty(outline.shape, dtype=outline.dtype)
            content = torch.empty_like(tensor.reshape(-1).view(torch.uint8), device=device)
        if content.numel():
            distributed.broadcast(content, src=0)
        return tensor if is_main() else content.cpu().view(outline.dtype).reshape(outline.shape)

    return _mapped(on_main(lambda: _mapped(read(), torch.Tensor, outlined)), _Outline, exchanged)


def _mapped(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The nested dicts, lists and tuples with every `kind` in them changed."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, kind, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, kind, change) for value in tree)
    return tree
