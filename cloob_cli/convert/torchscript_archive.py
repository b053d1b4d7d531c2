"""Read the tensors of a TorchScript archive, as OpenAI published CLIP, without running or even looking at its code.

torch opens such a file by compiling the code in it. This reader takes the archive for what it is, a zip with a pickle
of nested modules and a file for every tensor's numbers: modules become their attributes, tensors their shapes, and
every other name is refused (`restricted_pickle`).
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloob_cli.convert.restricted_pickle import DAMAGE, Bounded, Name, Opcodes, RefusedError, RestrictedReader
from cloob_cli.errors import ConversionError, UnsafeCheckpointError
from cloob_cli.text_format import os_reason

_STORAGES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
}
_DEEPEST = 16  # modules within modules; CLIP has seven
_MASK = "attn_mask"  # shared by all blocks, and computed from the context length


def is_torchscript(path: Path) -> bool:
    """True where a file is a zip with TorchScript's parts."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
    ends = {name.partition("/")[2] for name in names}
    return {"data.pkl", "constants.pkl"} <= ends and any(end.startswith("code/") for end in ends)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the module in an archive, by their names, each in memory of its own.

    Raises:
        UnsafeCheckpointError: its pickle asks for more than modules and tensors; nothing of it was run.
        ConversionError: it is truncated or damaged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            prefix = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
            if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
                raise ValueError("its numbers are not little-endian")
            found = dict(_tensors(_unpickled(archive, f"{prefix}data.pkl")))
            if len({tensor.storage.key for tensor in found.values()}) < len(found):
                raise ValueError("two tensors share their numbers")  # a small file must not describe a huge model
            return {name: _loaded(archive, prefix, tensor) for name, tensor in found.items()}
    except RefusedError as problem:
        raise UnsafeCheckpointError(
            f"{path} is refused: it holds {problem}, which no archive of modules and tensors needs",
            "nothing of it was run; the same model may exist in the form of open_clip or transformers",
        ) from None
    except OSError as problem:
        raise ConversionError(f"{path}: {os_reason(problem)}") from None
    except (*DAMAGE, RuntimeError, StopIteration, zipfile.BadZipFile) as problem:
        reason = str(problem).split("\n")[0] or type(problem).__name__
        raise ConversionError(f"{path} is not a valid TorchScript archive ({reason})") from None


class _Module:
    """A module of the archive: its attributes by name, once its state has come."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, Any] | None = None


class _Storage:
    """The numbers of a tensor, in a file of the archive."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype: torch.dtype, key: str, numel: int) -> None:
        self.dtype, self.key, self.numel = dtype, key, numel


class _Tensor:
    """A view of a storage, not loaded yet."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class _StorageType(Name):
    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(None)
        self.dtype = dtype


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """torch's `_rebuild_tensor_v2`; what comes after the strides are gradients and hooks."""
    whole = [*shape, *strides, offset] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in whole):
        raise RefusedError("a tensor of something else than numbers")
    if len(shape) != len(strides):
        raise ValueError("a tensor whose shape does not fit its strides")
    return _Tensor(storage, offset, shape, strides)


def _no_hooks(*arguments: Any) -> dict[str, Any]:
    """`OrderedDict()`: the hooks of a tensor, which has none."""
    if arguments:
        raise RefusedError("a mapping with contents of its own")
    return {}


def _numbers(values: Any) -> Any:
    """TorchScript's `build_intlist` and its kind: the list itself."""
    if not isinstance(values, list):
        raise RefusedError("a list made of something else")
    return values


_MODULE = Name(None)
_NAMES: dict[tuple[str, str], Name] = {
    ("torch._utils", "_rebuild_tensor_v2"): Name(_rebuild_tensor),
    ("collections", "OrderedDict"): Name(_no_hooks),
    **{("torch.jit._pickle", f"build_{kind}list"): Name(_numbers) for kind in ("int", "double", "bool", "tensor")},
    **{("torch", f"{kind}Storage"): _StorageType(dtype) for kind, dtype in _STORAGES.items()},
}


class _Reader(RestrictedReader):
    # A table of its own: what follows is not for pickles of other forms.
    dispatch = Opcodes(RestrictedReader.dispatch)

    def known_name(self, module: str, name: str) -> Name | None:
        # The archive's own classes: their code is never read, so all are the same.
        own = module == "__torch__" or module.startswith("__torch__.")
        return _MODULE if own else _NAMES.get((module, name))

    def build(self, built: Any, state: Any) -> None:
        if not isinstance(built, _Module) or built.attributes is not None or type(state) is not dict:
            raise RefusedError("a state for something that is not a module")
        built.attributes = state

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _device, numel = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or type(key) is not str:
            raise RefusedError("a reference to something else than numbers")
        if type(numel) is not int or numel < 0:
            raise ValueError("a tensor without a size")
        return _Storage(storage_type.dtype, key, numel)

    def _new_object(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        if made is not _MODULE or arguments != ():
            raise RefusedError("an object that is not a module of the archive")
        self.stack.append(_Module())

    dispatch[pickle.NEWOBJ[0]] = _new_object
    dispatch[pickle.BINPERSID[0]] = pickle._Unpickler.dispatch[pickle.BINPERSID[0]]


def _unpickled(archive: zipfile.ZipFile, name: str) -> _Module:
    entry = _stored(archive, name)
    with archive.open(entry) as stream:
        module = _Reader(Bounded(stream, entry.file_size)).load()
    if not isinstance(module, _Module):
        raise ValueError("it holds no module")
    return module


def _tensors(module: _Module) -> Iterator[tuple[str, _Tensor]]:
    """Every tensor below a module, by its dotted name; the masks of the blocks are left out."""
    left: list[tuple[str, _Module, int]] = [("", module, 0)]
    seen: set[int] = set()
    while left:
        prefix, current, depth = left.pop()
        if depth == _DEEPEST or id(current) in seen:  # a module within itself, or a small file with countless names
            raise ValueError("its modules are not a tree")
        seen.add(id(current))
        for name, value in (current.attributes or {}).items():
            if isinstance(value, _Module):
                left.append((f"{prefix}{name}.", value, depth + 1))
            elif isinstance(value, _Tensor) and name != _MASK:
                yield f"{prefix}{name}", value


def _loaded(archive: zipfile.ZipFile, prefix: str, tensor: _Tensor) -> Tensor:
    storage = tensor.storage
    entry = _stored(archive, f"{prefix}data/{storage.key}")
    if entry.file_size != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"the numbers {storage.key} are not as many as it says")
    if math.prod(tensor.shape) > storage.numel:
        raise ValueError("a tensor claims more numbers than the file holds")
    if not storage.numel:
        return torch.empty(tensor.shape, dtype=storage.dtype)
    numbers = torch.frombuffer(bytearray(archive.read(entry)), dtype=storage.dtype)
    return numbers.as_strided(tensor.shape, tensor.strides, tensor.offset)


def _stored(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:  # torch compresses code alone; numbers could unpack to any size
        raise ValueError(f"{name} is compressed")
    return entry
