"""Rows that earlier runs made, found by the name or the contents of an image's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cloob_cli.inference.index.file_stamp import Stamp


class Rows(Protocol):
    """An array of rows [N, D], or what reads them from a table when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, numbers: np.ndarray, /) -> np.ndarray: ...


class Row(NamedTuple):
    """Row `number` of the array `source` of some `KnownRows`, and the file that it was made of."""

    stamp: Stamp
    source: int
    number: int


class Kept(NamedTuple):
    """An image whose row is known: its name and stamp as they are now, and the row."""

    name: str
    stamp: Stamp
    row: Row


class KnownRows:
    """Arrays of rows [n, D] with the names and stamps of the files that they were made of.

    `by_name` has the row that was added last for a name; `by_content` one for each sha256; `sizes` of all files.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Row] = {}
        self.by_content: dict[str, Row] = {}
        self.sizes: set[int] = set()
        self._sources: list[Rows] = []

    def add(self, names: Sequence[str], stamps: Sequence[Stamp], rows: Rows) -> None:
        """Add rows; a file that is added again replaces what is known of its name."""
        source = len(self._sources)
        self._sources.append(rows)
        for number, (name, stamp) in enumerate(zip(names, stamps, strict=True)):
            row = Row(stamp, source, number)
            self.by_name[name] = row
            self.sizes.add(stamp.size)
            if stamp.sha256:
                self.by_content[stamp.sha256] = row

    def gather(self, rows: Sequence[Row]) -> np.ndarray:
        """Copy rows [n, D], in their order; n is at least 1."""
        sources = np.array([row.source for row in rows])
        numbers = np.array([row.number for row in rows])
        first = self._sources[rows[0].source]
        result = np.empty((len(rows), first.shape[1]), first.dtype)
        for source in np.unique(sources):
            places = sources == source
            result[places] = self._sources[source][numbers[places]]
        return result

    def close(self) -> None:
        """Let go of all arrays, so that the files which they are mapped from can be replaced (Windows)."""
        self._sources.clear()
