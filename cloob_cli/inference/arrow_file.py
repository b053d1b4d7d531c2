"""Files for pyarrow to read data from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow


@contextmanager
def arrow_file(path: Path) -> Iterator[pyarrow.NativeFile]:
    """A file that pyarrow itself has opened, whatever its name.

    Of a file of Python's own, a thread of pyarrow may let go later than the reading ends, for which it needs the
    interpreter: where that is ending, the whole process is aborted, after it has done its work.

    Raises:
        OSError: it cannot be opened.
    """
    import pyarrow as pa

    with path.open("rb") as stream:
        try:
            name = str(path).encode("utf-8").decode()
        except UnicodeEncodeError:  # bytes that pyarrow takes no path with
            name = f"/dev/fd/{stream.fileno()}"
        with pa.OSFile(name) as file:
            yield file
