"""The memory that decoding takes: an upper bound from an image's header, and a budget that threads share.

What does not fit into the budget waits until others have given back their part.

`tests/data/test_decoding_cost.py` measures what decoding really takes. Numbers are bytes a pixel of the stored image
unless they say otherwise.
"""

from __future__ import annotations

import re
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from cloob_cli.data.upright_rgb import BAND_PIXELS, EXTREME_RATIO, orientation
from cloob_cli.errors import ImageError, UsageError

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)
_DEFAULT_FRACTION = 0.25

# A row's address, and how Pillow rounds its length: of a column of 178 million pixels they are nearly all.
_ROW_BYTES, _ROW_UNIT = 8, 4
# Forms that a band goes through, as stored, with alpha, on white, RGB, or float64: 16 at once, with a margin.
_BAND_BYTES = 48
_FIXED = 1 << 20  # buffers of files and decoders

# Whole images that a decoder holds besides Pillow's, in bytes a pixel. WebP: canvas, earlier canvas, frame, and its
# bytes; AVIF, HEIF: planes of up to 16 bits, RGB and its bytes; the others decode in Python into one or two arrays.
_HELD = {"WEBP": 20, "AVIF": 24, "HEIF": 24, "QOI": 12, "PPM": 12, "SGI": 12, "BMP": 4, "DIB": 4}
_READS_WHOLE_FILE = {"WEBP", "AVIF", "HEIF", "ICO", "ICNS", "SGI", "JPEG2000"}
# An AVIF file may hold a larger image than its header says. libavif's own limit is 16384 x 16384 pixels; planes of such
# an image, in 8 bits and 4:2:0, take this much before it is scaled down to what the header says.
AVIF_LEAST = 600_000_000
_SEARCHED = 64 << 20  # bytes of a file that are searched for the headers of what it holds
_ICON_PIXELS = 2048 * 2048  # icons have 1024 x 1024 at most

_TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP = 322, 323, 278
_BITS, _COMPRESSION, _SAMPLES = 258, 259, 277


def decoding_bytes(image: Image.Image, stored: tuple[int, int], stream: BinaryIO, model_size: int) -> int:
    """The most memory that decoding, converting and resizing takes.

    Args:
        image: opened and not yet decoded; its size may be smaller than stored, after `draft`.
        stored: width and height as the file has them.
        stream: the file, whose position is kept.
        model_size: the side of the model's input.
    """
    width, height = image.size
    held = _storage(width, height, 4 if image.mode not in {"1", "L", "P"} else 1)
    pixels = stored[0] * stored[1]
    kind = image.format or ""
    size = _size_of(stream)
    total = held + pixels * _HELD.get(kind, 0) + (size if kind in _READS_WHOLE_FILE else 0)
    if kind in {"JPEG", "MPO"}:
        total += _jpeg_coefficients(image, pixels, stream)
    elif kind == "TIFF":
        total += _tiff_buffer(image, stored) + (held if orientation(image) != 1 else 0)
    elif kind == "JPEG2000":
        total += _jpeg_2000_samples(stream)
    short, long = sorted((width, height))
    # Between the two passes of resizing one side is the model's; of a very long image only the middle is resized.
    total += 4 * model_size * min(long, (EXTREME_RATIO + 1) * short + 64)
    if _is_converted_whole(image):
        total += _storage(width, height, 4)
    return total + min(width * height, BAND_PIXELS) * _BAND_BYTES + _FIXED


def _is_converted_whole(image: Image.Image) -> bool:
    """True where `Preprocess` converts the whole image to RGB before it resizes: tall ones that are not RGB already."""
    width, height = image.size
    if image.format == "PNG" and "exif" not in image.info:
        # Its EXIF may stand behind the pixels, and Pillow decodes them to see: it may be turned.
        return max(width, height) <= EXTREME_RATIO * min(width, height)
    # Pillow turns a TIFF itself, and its size is turned already.
    turned = 1 if image.format == "TIFF" else orientation(image)
    if image.mode == "RGB" and turned == 1 and not image.has_transparency_data:
        return False
    if turned in range(5, 9):
        width, height = height, width
    return width < height <= EXTREME_RATIO * width


def _storage(width: int, height: int, pixel_bytes: int) -> int:
    """The bytes that Pillow allocates for an image."""
    row = -(-width * pixel_bytes // _ROW_UNIT) * _ROW_UNIT
    return height * (row + _ROW_BYTES)


def _jpeg_coefficients(image: Image.Image, pixels: int, stream: BinaryIO) -> int:
    """libjpeg keeps all coefficients, 2 bytes each, of a JPEG whose planes do not come in one scan."""
    layers = [(horizontal, vertical) for _, horizontal, vertical, *_ in getattr(image, "layer", [])]
    if not layers:
        return 8 * pixels
    if _one_scan(stream, len(layers)) and not image.info.get("progressive"):
        return 0
    largest = max(h for h, _ in layers) * max(v for _, v in layers)
    return int(2 * pixels * sum(h * v for h, v in layers) / max(1, largest))


def _one_scan(stream: BinaryIO, planes: int) -> bool:
    """True where the first scan holds all planes. Pillow stops reading behind its header, which gives their number."""
    place = stream.tell()
    stream.seek(max(0, place - 8 - 2 * planes))
    marker, _, count = struct.unpack(">HHB", stream.read(5).ljust(5, b"\0"))
    stream.seek(place)
    return bool(marker == 0xFFDA and count == planes)


def _tiff_buffer(image: Image.Image, stored: tuple[int, int]) -> int:
    """The strip or tile that is unpacked at once; a file may claim one that is larger than its image."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(_COMPRESSION, 1) == 1:  # copied row by row
        return 0
    bits = tags.get(_BITS, (1,))
    depth = max(bits) if isinstance(bits, tuple) else int(bits)
    pixel_bits = depth * max(int(tags.get(_SAMPLES, 1)), len(bits) if isinstance(bits, tuple) else 1)
    if _TILE_WIDTH in tags:
        pixels = int(tags[_TILE_WIDTH]) * int(tags.get(_TILE_LENGTH, stored[1]))
    else:
        pixels = stored[0] * min(int(tags.get(_ROWS_PER_STRIP, stored[1])), stored[1])
    # libtiff holds the packed bytes as well, and of JPEG inside TIFF an RGBA copy.
    return 2 * pixels * max(pixel_bits // 8, 4)


def _jpeg_2000_samples(stream: BinaryIO) -> int:
    """OpenJPEG keeps 32 bits a sample and the unpacked tile; the code stream counts, whatever the file says of it."""
    return max((8 * planes * width * height for width, height, planes in _code_streams(_beginning(stream))), default=0)


def check_icon(stream: BinaryIO) -> None:
    """Refuse an icon, .ico or .icns, that holds a far larger image than icons have: some are decoded by opening them.

    Raises:
        ImageError: it does.
    """
    data = _beginning(stream)
    sizes = [(width, height) for width, height, _ in _code_streams(data)]
    sizes += [struct.unpack(">2I", match[1]) for match in re.finditer(b"IHDR((?s:.{8}))", data)]
    if not data.startswith(b"icns"):
        for number in range(min(struct.unpack_from("<H", data, 4)[0], (len(data) - 6) // 16)):
            (offset,) = struct.unpack_from("<I", data, 6 + 16 * number + 12)
            if data[offset : offset + 4] != b"\x89PNG" and offset + 12 <= len(data):  # a bitmap
                sizes.append(struct.unpack_from("<2i", data, offset + 4))
    for width, height in sizes:
        if abs(width * height) > _ICON_PIXELS:
            raise ImageError(f"too large: an icon that holds {abs(width)} x {abs(height)} pixels")


def _code_streams(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(width, height, planes) of every JPEG 2000 code stream."""
    for match in re.finditer(b"\xff\x4f\xff\x51(?s:.{4})(?P<box>(?s:.{16}))(?s:.{16})(?P<planes>(?s:..))", data):
        right, bottom, left, top = struct.unpack(">4I", match["box"])
        yield max(0, right - left), max(0, bottom - top), *struct.unpack(">H", match["planes"])


def _beginning(stream: BinaryIO) -> bytes:
    place = stream.tell()
    stream.seek(0)
    data = stream.read(_SEARCHED)
    stream.seek(place)
    return data


def _size_of(stream: BinaryIO) -> int:
    place = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(place)
    return size


class OverBudgetError(Exception):
    """More was asked for than the whole budget."""


class MemoryBudget:
    """`total` bytes. Whoever comes first is served first, so that what is large need not wait for ever."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold `amount` bytes of the budget inside the block; wait for them first.

        Raises:
            OverBudgetError: the whole budget is smaller.
        """
        if amount > self.total:
            raise OverBudgetError
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= amount)
                self._free -= amount
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


def parse_bytes(text: str) -> int:
    """A number of bytes: "1GB", "512 MB", "1.5GiB", "2G", "1000000".

    Raises:
        UsageError: it is no such number, or 0.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count < 1:
        raise UsageError(f"'{text}' is no amount of memory", "like 1GB, 512MB or 1.5GiB")
    return count


def default_budget() -> int:
    """A quarter of the memory that this process may use: the machine's, or less where a control group says so."""
    import psutil

    return int(_DEFAULT_FRACTION * min([psutil.virtual_memory().total, *_control_group_limits()]))


def _control_group_limits() -> list[int]:
    """Limits of this process's control groups (containers, cluster jobs), version 2 and 1."""
    root = Path("/sys/fs/cgroup")
    candidates = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2; every ancestor limits too
                group = root / path.lstrip("/")
                candidates += [folder / "memory.max" for folder in (group, *group.parents) if root in folder.parents]
            elif "memory" in controllers.split(","):
                candidates.append(root / "memory" / path.lstrip("/") / "memory.limit_in_bytes")
    except (OSError, ValueError):  # not Linux
        pass
    limits = []
    for candidate in candidates:
        try:
            limits.append(int(candidate.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return [limit for limit in limits if limit > 0]
