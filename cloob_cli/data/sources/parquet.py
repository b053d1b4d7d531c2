"""Pairs in parquet files: a column with the image's bytes, one with its caption or captions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cloob_cli.data.preprocess import open_image
from cloob_cli.data.sources.columns import CAPTION_NAMES, IMAGE_NAMES, caption_list, find_column
from cloob_cli.data.sources.data_fingerprint import Part, digest, short_names
from cloob_cli.errors import DataError, Failure, ImageError
from cloob_cli.text_format import first_line

# What a process may keep of the files in memory. A set that fits is mixed as a whole; a larger one in windows of so
# many row groups as fit (`blocks`), because reading one row costs reading its row group.
CACHE_BYTES = 512 * 2**20


class ParquetSource:
    """Row groups are read when a row of theirs is asked for, and the last used ones kept within `cache_bytes`.

    The image is a binary column, a struct of `bytes` and `path` as Hugging Face writes it, or a column of paths
    relative to the file; the caption is a string or a list of strings.

    Raises:
        DataError: a file cannot be read, has no rows, or lacks the columns.
    """

    def __init__(
        self, files: list[Path], image_key: str | None, caption_key: str | None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.unusable: list[Failure] = []
        self._files = files
        self._cache_bytes = cache_bytes
        self._columns: list[tuple[str, str]] = []
        groups: list[tuple[int, int]] = []  # file, row group in it
        rows: list[int] = []
        sizes: list[int] = []
        for number, path in enumerate(files):
            with _opened(path) as file:
                names = file.schema_arrow.names
                self._columns.append(
                    (
                        find_column(names, image_key, IMAGE_NAMES, "image", str(path)),
                        find_column(names, caption_key, CAPTION_NAMES, "caption", str(path)),
                    )
                )
                for group in range(file.num_row_groups):
                    metadata = file.metadata.row_group(group)
                    groups.append((number, group))
                    rows.append(metadata.num_rows)
                    sizes.append(_bytes_of(metadata, self._columns[-1]))
        self._groups = groups
        self._first_rows = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        if not len(self):
            raise DataError(f"no rows in {', '.join(map(str, files[:3]))}")
        self._blocks_in_window = 0
        if sum(sizes) > cache_bytes:
            self._blocks_in_window = max(1, int(cache_bytes // max(sizes)))
        self._reset()

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def blocks(self) -> tuple[np.ndarray, int] | None:
        """(int64 [len]: the row group of each sample, row groups that fit in memory); None where all of them fit."""
        if not self._blocks_in_window:
            return None
        return np.repeat(np.arange(len(self._groups)), np.diff(self._first_rows)), self._blocks_in_window

    def files(self) -> list[Path]:
        return self._files

    def file_of(self, index: int) -> Path:
        """The file that holds row `index`."""
        return self._files[self._groups[self._place(index)[0]][0]]

    def name(self, index: int) -> str:
        group, row = self._place(index)
        file, _ = self._groups[group]
        first = next(g for g, (number, _) in enumerate(self._groups) if number == file)
        return f"{self._files[file]}:{int(self._first_rows[group] - self._first_rows[first]) + row}"

    def captions(self, index: int) -> list[str]:
        group, row = self._place(index)
        return caption_list(self._column(group, 1)[row].as_py())

    def image(self, index: int, size_hint: int | None = None) -> Image.Image:
        group, row = self._place(index)
        value = self._column(group, 0)[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            value = self._files[self._groups[group][0]].parent / value
        if not value:
            raise ImageError("no image in this row")
        return open_image(value, size_hint)

    def parts(self) -> list[Part]:
        pairs = [0] * len(self._files)
        for (number, _), rows in zip(self._groups, np.diff(self._first_rows).tolist(), strict=True):
            pairs[number] += rows
        return [
            Part(name, count, path.stat().st_size, digest([_footer(path)]))
            for name, path, count in zip(short_names(self._files), self._files, pairs, strict=True)
            if count
        ]

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        return group, int(index - self._first_rows[group])

    def _column(self, group: int, which: int) -> pa.Array:
        with self._lock:
            key = (group, which)
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            number, within = self._groups[group]
            try:
                with _opened(self._files[number]) as file:
                    table = file.read_row_group(within, columns=[self._columns[number][which]], use_threads=False)
            except (pa.ArrowException, OSError, DataError) as problem:
                raise ImageError(f"its row group cannot be read: {first_line(problem)}") from None
            column = table.column(0).combine_chunks()
            column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            self._cache[key] = column
            self._cached_bytes += column.nbytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.nbytes
            return column

    def _reset(self) -> None:
        self._cache: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads what it needs itself.
        return {key: value for key, value in self.__dict__.items() if key not in {"_cache", "_cached_bytes", "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{path} is not a readable parquet file: {first_line(problem)}") from None


def _footer(path: Path) -> bytes:
    """A file's own description at its end: columns, row groups, places, lengths and, as a rule, statistics."""
    with path.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read(length)


def _bytes_of(metadata: pq.RowGroupMetaData, columns: tuple[str, str]) -> int:
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
