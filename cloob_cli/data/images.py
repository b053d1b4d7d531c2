"""From a picture's file to a model's pixels.

`open_image` turns whatever a file holds into 8-bit RGB; `Preprocess` resizes and crops that as the reference programs
do an RGB image, to the bit; `normalise` scales and shifts the values on any device.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from cloob_cli.core.config import PreprocessConfig
from cloob_cli.data import libtiff
from cloob_cli.errors import ImageError

# Twice Pillow's default: room for a 108-megapixel phone, while a bomb would take gigabytes.
MAX_PIXELS = 2 * 89_478_485

# Beyond this ratio of the sides a whole resized picture could take gigabytes of which the crop keeps a sliver.
_EXTREME_RATIO = 16


_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG2000", "MPO", "PPM", "TGA", "ICO", "ICNS",
    "PCX", "SGI", "QOI",
)  # fmt: skip
_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8"}


def open_image(source: Path | str | bytes, size_hint: int | None = None) -> Image.Image:
    """Read one picture as 8-bit RGB, of an animation the first frame.

    EXIF rotation is applied, transparency is laid on white, 16-bit and float values are scaled to 8 bits; palette,
    CMYK and greyscale pictures are converted.

    Args:
        source: a file's path, or its bytes.
        size_hint: the smallest side that will be needed, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size where both sides stay at least that long: several times faster, but not equal to the bit.

    Raises:
        ImageError: no picture, empty, truncated, unreadable or too large; the message is one line without the name.
    """
    libtiff.silence()
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and large pictures; a folder of pictures is not the place to repeat that.
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        try:
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
                return _decode(Image.open(stream, formats=_formats_of(stream)), size_hint)
        except ImageError:
            raise
        except Exception as problem:  # Pillow's decoders raise nearly every class there is on hostile files
            raise ImageError(_reason(source, problem)) from None


def _formats_of(stream: BinaryIO) -> tuple[str, ...]:
    """The format that the first bytes belong to, else all: Pillow tries one after the other, slowly."""
    head = stream.read(12)
    stream.seek(0)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return ("WEBP",)
    return next(((name,) for name, magic in _MAGIC.items() if head.startswith(magic)), _known_formats())


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Formats of pictures that Pillow decodes itself; for PostScript, say, it would start another program."""
    Image.init()
    try:  # .heic and .heif, where the extra `heif` is installed
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _decode(image: Image.Image, size_hint: int | None) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"too large: {width} x {height} pixels (at most {MAX_PIXELS // 1_000_000} million are read)")
    if size_hint is not None and image.format in {"JPEG", "MPO"}:
        image.draft(None, (size_hint, size_hint))
    return _upright_rgb(image)


def _upright_rgb(image: Image.Image) -> Image.Image:
    """What every file is turned into, whoever opened it: decoded, EXIF rotation applied, 8-bit RGB on white."""
    image.load()
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata is no reason to lose the picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits, which Pillow's own conversion would clip at 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    largest = float(values.max())
    full = 65535.0 if image.mode != "F" else 1.0 if largest <= 1.0 else 255.0
    full = max(full, largest)
    return Image.fromarray(np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8))


def _reason(source: Path | str | bytes, problem: Exception) -> str:
    if isinstance(problem, Image.DecompressionBombError):
        return f"too large: more than {MAX_PIXELS // 1_000_000} million pixels"
    if isinstance(problem, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        return "not a picture in a known format" if size else "the file is empty"
    if isinstance(problem, OSError) and problem.strerror:
        return f"cannot be read: {problem.strerror.lower()}"
    if isinstance(problem, MemoryError):
        return "too large for this machine's memory"
    detail = " ".join(str(problem).split()) or type(problem).__name__
    if "truncated" in detail.lower() or isinstance(problem, EOFError):
        return "the file is truncated"
    return f"damaged: {detail[:200]}"


class Preprocess:
    """The picture a model sees: resized (antialiased), centre-cropped, scaled to [0, 1] and normalised.

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
            upright = _upright_rgb(image)
        except (OSError, SyntaxError, ValueError) as problem:  # what Pillow's decoders raise, later than `open`
            raise ImageError(_reason(b"", problem)) from None
        return normalise(torch.from_numpy(self.crop(upright)), self.config)

    def crop(self, image: Image.Image) -> np.ndarray:
        """An RGB picture of any size -> uint8 [image_size, image_size, 3]."""
        size, filter = self.image_size, Image.Resampling[self.config.interpolation.upper()]
        image = _to_rgb(image)
        if self.config.resize == "squash":
            return np.array(image.resize((size, size), filter))
        width, height = image.size
        short, long = min(width, height), max(width, height)
        resized_long = int(size * long / short)
        resized = (size, resized_long) if width <= height else (resized_long, size)
        left, top = (round((side - size) / 2.0) for side in resized)  # half to even, as torchvision rounds
        if long > _EXTREME_RATIO * short:
            scale_x, scale_y = width / resized[0], height / resized[1]
            box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
            return np.array(image.resize((size, size), filter, box=box))
        if image.size != resized:
            image = image.resize(resized, filter)
        return np.array(image.crop((left, top, left + size, top + size)))


def normalise(pixels: torch.Tensor, config: PreprocessConfig) -> torch.Tensor:
    """uint8 [..., H, W, 3] or [..., 3, H, W] -> float32 [..., 3, H, W], on the device of `pixels`."""
    if pixels.shape[-1] == 3:
        pixels = pixels.movedim(-1, -3)
    mean = torch.tensor(config.mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(config.std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div(255).sub_(mean).div_(std)
