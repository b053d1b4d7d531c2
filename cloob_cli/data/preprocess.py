"""From an image's file to a model's pixels.

`open_image` turns whatever a file holds into 8-bit RGB; `Preprocess` resizes and crops that as the reference programs
do an RGB image, bit-exact; `normalize` scales and shifts the values on any device.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, _imaging

from cloob_cli.core.model_config import PreprocessConfig
from cloob_cli.data.decoding_memory import AVIF_LEAST, MemoryBudget, OverBudgetError, check_icon, decoding_bytes
from cloob_cli.data.scaled_decoding import JPEG_RESERVE, averaged, scaled
from cloob_cli.data.upright_rgb import BAND_PIXELS, EXTREME_RATIO, Upright
from cloob_cli.errors import ImageError

# Twice Pillow's default: room for a 108-megapixel phone, while a bomb would take gigabytes.
MAX_PIXELS = 2 * 89_478_485

_SUPPORT = 3  # pixels beyond its place that a resized pixel depends on, at most (Lanczos)

_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG2000", "MPO", "PPM", "TGA", "ICO", "ICNS",
    "PCX", "SGI", "QOI",
)  # fmt: skip
_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8"}


def open_image(source: Path | str | bytes, size_hint: int | None = None) -> Image.Image:
    """Read one image as 8-bit RGB, of an animation the first frame.

    EXIF rotation is applied, transparency is laid on white, 16-bit and float values are scaled to 8 bits; palette,
    CMYK and grayscale images are converted.

    Args:
        source: a file's path, or its bytes.
        size_hint: the smallest side that will be needed, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size where both sides stay at least that long: several times faster, but not bit-exact.

    Raises:
        ImageError: no image, empty, truncated, unreadable or too large; the message is one line without the name.
    """
    with _opened(source, size_hint) as (image, _, _):
        return Upright(image).whole()


def read_crop(
    source: Path | str | bytes,
    preprocess: Preprocess,
    budget: MemoryBudget,
    *,
    exact: bool = False,
    also: Callable[[Image.Image], None] | None = None,
) -> np.ndarray:
    """Read one image for a model, uint8 [H, W, 3], in less memory than `open_image` and `preprocess.crop` take.

    Args:
        source: a file's path, or its bytes.
        budget: what decoding this and other images may take together; a large one waits for its part.
        exact: give the same numbers as `preprocess.crop`. Otherwise large images are made smaller first, where that
            keeps embeddings within a cosine of 0.999 (`cloob_cli.data.scaled_decoding`).
        also: called with the decoded image, for what else is to be made of it.

    Raises:
        ImageError: as `open_image`, or decoding it would take more than the whole budget.
    """
    side = preprocess.image_size
    with _opened(source, None if exact else JPEG_RESERVE * side) as (image, stored, needed):
        amount = needed(side)
        if not exact and averaged(image, side) > 1:
            amount += 4 * (image.width // 2 + 1) * (image.height // 2 + 1)
        if image.format == "AVIF":
            amount = max(amount, min(AVIF_LEAST, budget.total))
        try:
            with budget.reserve(amount):
                try:
                    pixels = preprocess.crop(image) if exact else preprocess.scaled_crop(image, stored)
                    if also is not None:
                        also(image)
                    return pixels
                finally:
                    image.close()  # before others are given the memory
        except OverBudgetError:
            raise ImageError(
                f"too large: decoding {image.width} x {image.height} pixels may take {amount / 1e9:.1f} GB, the memory "
                f"budget is {budget.total / 1e9:.1f} GB (--memory-budget)"
            ) from None


def read_size(source: Path | str | bytes) -> tuple[int, int]:
    """The stored width and height of an image in pixels, from its header.

    Raises:
        ImageError: as `open_image`, as far as the header shows it.
    """
    with _opened(source, None) as (image, _, _):
        return image.width, image.height


@contextmanager
def _opened(
    source: Path | str | bytes, size_hint: int | None
) -> Iterator[tuple[Image.Image, tuple[int, int], Callable[[int], int]]]:
    """An image that is not decoded yet, its size in the file, and the bytes that decoding may take by input size."""
    _silence_libtiff()
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and large images; a folder of images is not the place to repeat that.
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        try:
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
                image = Image.open(stream, formats=_formats_of(stream))
                stored = width, height = image.size
                if width * height > MAX_PIXELS:
                    limit = f"at most {MAX_PIXELS // 1_000_000} million are read"
                    raise ImageError(f"too large: {width} x {height} pixels ({limit})")
                if size_hint is not None and image.format in {"JPEG", "MPO"}:
                    image.draft(None, (size_hint, size_hint))
                yield image, stored, lambda size: decoding_bytes(image, stored, stream, size)
        except ImageError:
            raise
        except Exception as problem:  # Pillow's decoders raise nearly every class there is on hostile files
            raise ImageError(_reason(source, problem)) from None


def _formats_of(stream: BinaryIO) -> tuple[str, ...]:
    """The format that the first bytes belong to, else all: Pillow tries one after the other, slowly."""
    head = stream.read(12)
    stream.seek(0)
    if head.startswith((b"\0\0\1\0", b"icns")):
        check_icon(stream)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return ("WEBP",)
    for name, magic in _MAGIC.items():
        if head.startswith(magic):
            return (name,)
    return _known_formats()  # which loads all of Pillow's plugins


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Formats of images that Pillow decodes itself; for PostScript, say, it would start another program."""
    Image.init()
    try:  # .heic and .heif, where the extra `heif` is installed
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(source: Path | str | bytes, problem: Exception) -> str:
    if isinstance(problem, Image.DecompressionBombError):
        return f"too large: more than {MAX_PIXELS // 1_000_000} million pixels"
    if isinstance(problem, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        return "not an image in a known format" if size else "the file is empty"
    if isinstance(problem, OSError) and problem.strerror:
        return f"cannot be read: {problem.strerror.lower()}"
    if isinstance(problem, MemoryError):
        return "too large for this machine's memory"
    detail = " ".join(str(problem).split()) or type(problem).__name__
    if "truncated" in detail.lower() or isinstance(problem, EOFError):
        return "the file is truncated"
    return f"damaged: {detail[:200]}"


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff off stderr, where it repeats about damaged files what their skip already says.

    Where Pillow's libtiff is a library that can be reached (not on Windows).
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)  # finds also what this one is linked with
        setters = [getattr(library, name) for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler")]
    except (AttributeError, OSError):
        return
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        setter(None)


class Preprocess:
    """The image a model sees: resized (antialiased), center-cropped, scaled to [0, 1] and normalized.

    The short side becomes `image_size` and the long side int(image_size * long / short), as in torchvision's Resize
    and CenterCrop, which the reference programs use; with `config.resize == "squash"` both sides become `image_size`.
    """

    def __init__(self, image_size: int, config: PreprocessConfig | None = None) -> None:
        self.image_size = image_size
        self.config = config or PreprocessConfig()

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An image of any size and mode, as `PIL.Image.open` gives it -> float32 [3, image_size, image_size].

        The same numbers as the commands get from its file: EXIF rotation is applied, transparency laid on white,
        16-bit and float values are scaled to 8 bits. An image that is upright and RGB already is taken as it is.

        Raises:
            ImageError: its file is truncated or damaged.
        """
        try:
            pixels = self.crop(image)
        except (OSError, SyntaxError, ValueError) as problem:  # what Pillow's decoders raise, later than `open`
            raise ImageError(_reason(b"", problem)) from None
        return normalize(torch.from_numpy(pixels), self.config)

    def crop(self, image: Image.Image) -> np.ndarray:
        """An image as `__call__` takes it -> uint8 [image_size, image_size, 3]."""
        return self._crop(Upright(image))

    def scaled_crop(self, image: Image.Image, stored: tuple[int, int]) -> np.ndarray:
        """The same of an image that is made smaller first, and that its decoder may have made smaller than `stored`."""
        return self._crop(scaled(image, stored, self.image_size))

    def _crop(self, upright: Upright) -> np.ndarray:
        size = self.image_size
        width, height = upright.full
        if self.config.resize == "squash":
            return np.array(self._resized(upright, (size, size)))
        short, long = min(width, height), max(width, height)
        resized_long = int(size * long / short)
        resized = (size, resized_long) if width <= height else (resized_long, size)
        left, top = (round((side - size) / 2.0) for side in resized)  # half to even, as torchvision rounds
        if long > EXTREME_RATIO * short:
            return np.array(self._middle(upright, resized, (left, top)))
        image = self._resized(upright, resized, columns=(left, left + size))
        return np.array(image.crop((0, top, size, top + size)))

    def _resized(self, upright: Upright, size: tuple[int, int], columns: tuple[int, int] | None = None) -> Image.Image:
        """The whole image at another size, of that only some columns.

        Of an image that is not tall Pillow resizes the rows first and then the columns, rounding in between, so bands
        of rows may be resized one after the other, and columns that are not wanted left out, without changing a bit.
        (Of tall ones Pillow 13 resizes the columns first, earlier versions the rows.)
        """
        first, end = columns or (0, size[0])
        width, height = upright.size
        if upright.is_plain or height > width or width * height <= BAND_PIXELS:
            return upright.whole().resize(size, self._filter, box=upright.covered).crop((first, 0, end, size[1]))
        left, upper, right, lower = upright.covered
        narrow = Image.new("RGB", (end - first, height))
        for top, bottom in upright.bands():
            band = upright.part((0, top, width, bottom))
            band = band.resize((size[0], bottom - top), self._filter, box=(left, 0, right, bottom - top))
            narrow.paste(band.crop((first, 0, end, bottom - top)), (0, top))
        return narrow.resize((end - first, size[1]), self._filter, box=(0, upper, end - first, lower))

    def _middle(self, upright: Upright, resized: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
        """The crop at `corner` of the resized image, made from the part of the image that it depends on."""
        side = self.image_size
        box, region = [], []
        edges = (upright.covered[:2], upright.covered[2:])
        for full, small, start, edge, far in zip(upright.size, resized, corner, *edges, strict=True):
            scale = (far - edge) / small
            margin = _SUPPORT * max(scale, 1.0) + 1
            first, last = edge + start * scale, edge + (start + side) * scale
            box.append((first, last))
            region.append((max(0, int(first - margin)), min(full, int(last + margin) + 1)))
        (left, right), (top, bottom) = region
        inner = [place - origin for axis, (origin, _) in zip(box, region, strict=True) for place in axis]
        part = upright.part((left, top, right, bottom))
        return part.resize((side, side), self._filter, box=(inner[0], inner[2], inner[1], inner[3]))

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.config.interpolation.upper()]


def normalize(pixels: torch.Tensor, config: PreprocessConfig) -> torch.Tensor:
    """uint8 [..., H, W, 3] or [..., 3, H, W] -> float32 [..., 3, H, W], on the device of `pixels`."""
    if pixels.shape[-1] == 3:
        pixels = pixels.movedim(-1, -3)
    mean = torch.tensor(config.mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(config.std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div(255).sub_(mean).div_(std)
