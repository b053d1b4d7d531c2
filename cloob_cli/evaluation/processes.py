"""Several processes, as `accelerate launch` starts them: each embeds a part of the images, and all get the whole."""

from __future__ import annotations

import os

from cloob_cli import launch


def start(device: str | None) -> str | None:
    """Join the other processes, if any, and return the device of this one.

    Args:
        device: what was asked for; None and "auto" choose, and each process on a machine gets a GPU of its own.
    """
    if launch.count() == 1:
        return device
    import torch
    from accelerate import PartialState

    gpus = device in (None, "auto", "cuda") and torch.cuda.is_available()
    PartialState(cpu=not gpus)
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpus else device
