"""Several processes, as `accelerate launch` starts them: each embeds a part of the images, and all get the whole."""

from __future__ import annotations

import os
from typing import TypeVar

Value = TypeVar("Value")


def count() -> int:
    """The number of processes that work on the same evaluations."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process among them, from 0; that one reports and writes."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def start(device: str | None) -> str | None:
    """Join the other processes, if any, and return the device of this one.

    Args:
        device: what was asked for; None and "auto" choose, and each process on a machine gets a GPU of its own.
    """
    if count() == 1:
        return device
    import torch
    from accelerate import PartialState

    gpus = device in (None, "auto", "cuda") and torch.cuda.is_available()
    PartialState(cpu=not gpus)
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpus else device


def gathered(value: Value) -> list[Value]:
    """Each process's value, in the order of their numbers, on all of them."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Value] = gather_object([value])
    return found
