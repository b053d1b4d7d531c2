"""Read a part of the input: the bytes of its images in their order, and for those that cannot be read the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from cloob_cli.data.image_folder import suffixes
from cloob_cli.data.sources.tar_index import COMPRESSED, TarScan
from cloob_cli.errors import DataError, ImageError
from cloob_cli.inference.cluster.parts import Part, find_image_column
from cloob_cli.inference.cluster.places import Place, check_size, open_place, place_for_arrow, read_place
from cloob_cli.inference.image_batches import result_or_reason
from cloob_cli.parallel import map_in_order
from cloob_cli.path_text import path_text
from cloob_cli.text_format import first_line, os_reason

_THREADS = 8  # that wait for answers from elsewhere; a disk of this machine gains nothing by more than one
_ROWS = 64  # of a Parquet file that are read at a time


class Content(NamedTuple):
    """An image, `data`, or why there is none, `reason`."""

    name: str
    data: bytes | None
    reason: str | None


def read_part(part: Part) -> Iterator[Content]:
    """Read the images of a part one after the other. A file that is damaged is a reason and no error."""
    match part.kind:
        case "images":
            yield from _read_files(part)
        case "tar":
            yield from _read_whole(part, open_place, _read_tar)
        case "parquet":
            yield from _read_whole(part, place_for_arrow, _read_parquet)
        case "failure":
            yield Content(part.names[0], None, part.detail)


def _read_files(part: Part) -> Iterator[Content]:
    def read(item: tuple[str, Place]) -> Content:
        name, place = item
        return _content(name, lambda: read_place(place))

    threads = _THREADS if part.base else 0
    yield from map_in_order(read, zip(part.names, part.places(), strict=True), threads, 2 * _THREADS)


def _content(name: str, read: Callable[[], bytes]) -> Content:
    result = result_or_reason(read)
    return Content(name, None, result) if isinstance(result, str) else Content(name, result, None)


def _read_whole(
    part: Part,
    opening: Callable[[Place], AbstractContextManager[Any]],
    read: Callable[[Part, Any], Iterable[Content]],
) -> Iterator[Content]:
    try:
        with opening(part.places()[0]) as stream:
            yield from read(part, stream)
    except DataError as problem:
        yield Content(part.names[0], None, problem.message)
    except OSError as problem:
        yield Content(part.names[0], None, f"cannot be read: {os_reason(problem)}")
    except Exception as problem:  # pyarrow has classes of its own
        yield Content(part.names[0], None, f"cannot be read: {first_line(problem)}")


def _read_tar(part: Part, stream: Any) -> Iterator[Content]:
    """The members KEY.SUFFIX whose suffix is that of an image: of `1.seg.png` it is `seg.png`."""
    if stream.read(6).startswith(COMPRESSED):
        raise DataError("the tar file is compressed: unpack it, as with gunzip FILE")
    known = {suffix.lstrip(".") for suffix in suffixes()}
    scan = TarScan(stream)
    count = 0
    for member in scan.members():
        if member.name.rpartition("/")[2].partition(".")[2].lower() in known:
            count += 1
            name = f"{part.names[0]}/{path_text(Path(member.name))}"
            yield _content(name, lambda offset=member.offset, size=member.size: _slice(stream, offset, size))  # type: ignore[misc]
    if damage := scan.damage():
        yield Content(part.names[0], None, damage)
    elif not count:
        yield Content(part.names[0], None, "holds no image")


def _slice(stream: Any, offset: int, size: int) -> bytes:
    check_size(size)
    stream.seek(offset)
    data: bytes = stream.read(size)
    if len(data) < size:
        raise ImageError("the tar file is truncated")
    return data


def _read_parquet(part: Part, stream: Any) -> Iterator[Content]:
    """The rows FILE:NUMBER; a row group that cannot be read is one reason."""
    import pyarrow as pa
    from pyarrow import parquet

    file = parquet.ParquetFile(stream)
    column = find_image_column(file.schema_arrow.names, part.detail, part.names[0])
    first = 0
    for group in range(file.num_row_groups):
        row = first
        first += file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column], use_threads=False):
                for value in batch.column(0):
                    yield _row(part, row, value.as_py())
                    row += 1
        except (pa.ArrowException, OSError) as problem:
            rows = f"{row} to {first - 1}" if row < first - 1 else str(row)
            yield Content(f"{part.names[0]}:{rows}", None, f"cannot be read: {first_line(problem)}")
    if not first:
        yield Content(part.names[0], None, "holds no row")


def _row(part: Part, row: int, value: Any) -> Content:
    def read() -> bytes:
        image = value
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str) and image:
            return read_place(part.places()[0].at(image))
        if not isinstance(image, bytes) or not image:
            raise ImageError("no image in this row")
        check_size(len(image))
        return image

    return _content(f"{part.names[0]}:{row}", read)
