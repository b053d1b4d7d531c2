"""Safetensors files: written, their headers read, their tensors read."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli.errors import ModelFolderError
from cloob_cli.text_format import first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of the CPU into a safetensors file.

    Raises:
        OSError: it could not be written; the library itself hides the disk's errors in one of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as problem:
        said = re.search(r"\(os error (\d+)\)", str(problem))
        number = int(said[1]) if said else errno.EIO
        raise OSError(number, os.strerror(number) if said else str(problem), str(path)) from None


def read_header(path: Path) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
    """Names with dtype and shape of the tensors of a safetensors file, and its metadata; nothing is loaded.

    Raises:
        ModelFolderError: the file is missing, truncated or not what its header says.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        inner = path.parent / "model"  # where a training run keeps its model folder
        hint = f"did you mean {inner}?" if (inner / path.name).is_file() else None
        raise ModelFolderError(f"{path.parent} has no {path.name}", hint)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            header = {name: (one.get_dtype(), list(one.get_shape())) for name, one in slices.items()}
            return header, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as problem:
        raise ModelFolderError(
            f"{path} is not a valid safetensors file ({first_line(problem)})", "fetch or write it again"
        ) from None


def read_tensors(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file with a model's weights, on `device`.

    Args:
        dtype: what floating-point tensors become.

    Raises:
        ModelFolderError: the file cannot be read, or holds whole numbers where weights should be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as problem:
        raise ModelFolderError(f"{path} cannot be read ({problem})") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise ModelFolderError(f"{path}: '{name}' is stored as {tensor.dtype}, not as floating-point numbers")
    return {  # copies: the file is mapped, and whoever shortened it would end this process
        name: tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
        for name, tensor in tensors.items()
    }
