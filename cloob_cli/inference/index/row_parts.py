"""Rows of several arrays as one array, which is read in slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class RowParts:
    """Rows [N, D] of several arrays [n, D], one after another; the arrays may be mapped from files.

    Args:
        arrays: at least one; those of different dtypes are read in one that holds the numbers of all.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self.shape = (sum(map(len, arrays)), int(arrays[0].shape[1]))
        self.dtype = np.result_type(*(array.dtype for array in arrays))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: slice) -> np.ndarray:
        """Copy rows that follow each other."""
        first, last, step = numbers.indices(len(self))
        assert step == 1
        result = np.empty((max(0, last - first), self.shape[1]), self.dtype)
        start = 0
        for array in self._arrays:
            begin, end = max(first, start), min(last, start + len(array))
            if begin < end:
                result[begin - first : end - first] = array[begin - start : end - start]
            start += len(array)
        return result
