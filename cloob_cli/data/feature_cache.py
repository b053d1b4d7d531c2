"""Features that were computed once, on disk: rows of float32 that grow block by block and survive a kill.

    features.npy      float32 [rows, width], in numpy's format, written from its beginning to its end
    progress.json     what they are of (`key`), how many rows are done, which rows have none and why

A block counts once progress.json says so, which is written after the block's rows are on the disk. What was made for
another key is begun anew.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cloob_cli.atomic_files import replacing

_BYTES = 4  # of a number
_FEATURES, _PROGRESS = "features.npy", "progress.json"


class FeatureFile:
    """Rows of features in `folder`, begun anew where what is there has another key.

    Args:
        key: what the features depend on, as JSON values by names for people.

    Attributes:
        done: rows that are there, from the first on.
        missing: rows without features and the reason.
        changed: the names in `key` by which what was there before differed; empty where there was nothing.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], rows: int, width: int) -> None:
        self.folder, self.key, self.shape = folder, dict(key), (rows, width)
        self.done, self.missing, self.changed = 0, dict[int, str](), list[str]()
        folder.mkdir(parents=True, exist_ok=True)
        stored = self._stored()
        if stored is not None and stored["key"] == self.key and self._holds(stored["done"]):
            self.done = stored["done"]
            self.missing = {int(row): reason for row, reason in stored["missing"].items()}
            return
        if stored is not None:
            before = stored["key"]
            self.changed = [name for name in self.key if before.get(name) != self.key[name]] or ["file"]
            (folder / _PROGRESS).unlink()  # first: rows of two keys must never pass for those of one
        (folder / _FEATURES).write_bytes(self._header())
        self._write_progress()

    @property
    def complete(self) -> bool:
        return self.done == self.shape[0]

    def add(self, rows: np.ndarray, missing: Mapping[int, str]) -> None:
        """Append a block, float32 [n, width]; `missing` are those of its rows, counted from the first of all."""
        # Not through a memory map: a full disk would end the process there, where it is an error here.
        with (self.folder / _FEATURES).open("r+b") as stream:
            stream.seek(len(self._header()) + self.done * self.shape[1] * _BYTES)
            stream.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        self.done += len(rows)
        self.missing |= missing
        self._write_progress()

    def rows(self) -> np.ndarray:
        """All rows, read from the disk as they are used."""
        found: np.ndarray = np.load(self.folder / _FEATURES, mmap_mode="r")
        return found

    def _stored(self) -> dict[str, Any] | None:
        try:
            stored = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
            return stored if {"key", "done", "missing"} <= stored.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _holds(self, rows: int) -> bool:
        """True where the file is one of this shape and has so many rows."""
        header, path = self._header(), self.folder / _FEATURES
        try:
            with path.open("rb") as stream:
                begins = stream.read(len(header)) == header
            return begins and path.stat().st_size >= len(header) + rows * self.shape[1] * _BYTES
        except OSError:
            return False

    def _header(self) -> bytes:
        stream = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()

    def _write_progress(self) -> None:
        with replacing(self.folder / _PROGRESS) as temporary:
            stored = {"key": self.key, "done": self.done, "missing": self.missing}
            temporary.write_text(json.dumps(stored) + "\n", encoding="utf-8")


class FeatureTable:
    """Rows of features by number.

    Args:
        numbers: int64 [rows], which number each row is for, none twice.
        rows: float32 [rows, W].
        missing: numbers without features, and the reason.
    """

    def __init__(self, numbers: Iterable[int] | np.ndarray, rows: np.ndarray, missing: Mapping[int, str]) -> None:
        numbers = np.asarray(numbers, dtype=np.int64)
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]
        self._rows, self.missing = rows, dict(missing)

    @property
    def width(self) -> int:
        return int(self._rows.shape[1])

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """float32 [..., W] of numbers int64 [...]."""
        places = np.searchsorted(self._numbers, numbers)
        assert np.array_equal(self._numbers[np.minimum(places, len(self._numbers) - 1)], numbers)
        found = np.array(self._rows[self._order[places].reshape(-1)])
        return found.reshape(*numbers.shape, self.width)
