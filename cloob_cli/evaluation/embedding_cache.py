"""Embeddings that were computed before, kept on disk under a digest of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cloob_cli.atomic_files import replacing
from cloob_cli.checkpoint.safetensors_file import write_tensors

_FORMAT = 1  # of the files; a change makes all kept ones void


@dataclass(frozen=True)
class Kept:
    """Tensors, and a text beside each name in `notes`."""

    tensors: dict[str, Tensor]
    notes: dict[str, str]


class Store:
    """A folder of safetensors files, named by the digest of their key; None for the folder keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, key: Mapping[str, object]) -> Kept | None:
        """The tensors that were kept under `key`; None where there are none, or a damaged file."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            os.utime(path)  # `cloob zoo prune` removes what was not used for long
        except OSError:  # a folder that only others may write to
            pass
        try:
            with safe_open(path, "pt") as file:
                return Kept({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            return None

    def write(self, key: Mapping[str, object], kept: Kept) -> None:
        """Keep tensors under `key`; a disk that has no room is no reason to fail."""
        path = self._path(key)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write_tensors(kept.tensors, temporary, kept.notes)
        except OSError:
            pass

    def _path(self, key: Mapping[str, object]) -> Path | None:
        if self._folder is None:
            return None
        text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
        return self._folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.safetensors"
