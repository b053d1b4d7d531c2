"""Read a file that `torch.save` wrote, or a safetensors file, without running any of it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloob_cli.errors import ConversionError, UnsafeCheckpointError
from cloob_cli.text_format import os_reason

# How torch's restricted reader says that a file asks for more than tensors in containers. The rest of its message
# explains how to load such a file all the same, which is the last thing to repeat to anybody.
_ASKS_FOR_CODE = re.compile(
    r"unsupported (?:global|operand|class)\W*(?:GLOBAL )?\S+|TorchScript|(?:can only|trying to (?:call|set)) [^.\n]+",
    re.IGNORECASE,
)


_ZIP, _OLD_FORM = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_torch_file(path: Path) -> bool:
    """True where a file begins as `torch.save` writes it, now or before torch 1.6.

    Raises:
        ConversionError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return stream.read(len(_OLD_FORM)).startswith((_ZIP, _OLD_FORM))
    except OSError as problem:
        raise ConversionError(f"{path}: {os_reason(problem)}") from None


def read_torch_file(path: Path) -> Any:
    """Read what `torch.save` wrote: tensors (on the CPU; mapped from the file where its form allows) in containers.

    Only torch's restricted reader is used (`weights_only`), which knows tensors and containers and no other names.

    Raises:
        UnsafeCheckpointError: the file asks for anything else; nothing of it was run.
        ConversionError: it is truncated, damaged or no such file.
    """
    path = Path(path)
    if not is_torch_file(path):
        raise ConversionError(f"{path} is not a file of torch.save", "is it a pickle of Haiku (--format crowsonkb)?")
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            _refuse_compressed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own notices about storages of old files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as problem:
        raise ConversionError(f"{path}: {os_reason(problem)}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError,
            ArithmeticError, MemoryError, zipfile.BadZipFile, NotImplementedError) as problem:  # fmt: skip
        if found := _ASKS_FOR_CODE.search(str(problem)):
            raise UnsafeCheckpointError(
                f"{path} is refused: it asks for more than tensors ({found.group().lower()})",
                "nothing of it was run; do not open it with another program either",
            ) from None
        reason = str(problem).split(". ")[0].split("\n")[0] or type(problem).__name__
        raise ConversionError(f"{path} is not a valid torch checkpoint ({reason})") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped from it.

    Raises:
        ConversionError: it is truncated, damaged or no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise ConversionError(f"{path} is not a valid safetensors file ({problem})") from None


def plain_tensor(name: str, tensor: Any) -> Tensor:
    """A copy of its own of a checkpoint's tensor: float32, or int64 where it holds whole numbers.

    Raises:
        ConversionError: it is no ordinary tensor, or claims more numbers than the file holds.
    """
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ConversionError(f"'{name}' is not an ordinary tensor")
    if tensor.is_quantized or tensor.is_complex():
        raise ConversionError(f"'{name}' has the type {tensor.dtype}, which no checkpoint of these models has")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ConversionError(f"'{name}' claims more numbers than the file holds")
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to(dtype, copy=True).contiguous()


def _refuse_compressed(path: Path) -> None:
    # torch never compresses; a file that does could unpack to any size.
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ConversionError(f"{path} is not a valid torch checkpoint (a part of it is compressed)")
