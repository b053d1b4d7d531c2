"""Write safetensors files."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
