"""Thumbnails: small WebP files of bounded size, made of images that are decoded already."""

from __future__ import annotations

import io

from PIL import Image, features

from cloob_cli.data.upright_rgb import Upright, orientation

SIDE = 128  # pixels of the longer side
MOST_BYTES = 6144  # of one thumbnail; photographs take about half

_AVERAGED = {"RGB", "L", "CMYK"}  # modes that Pillow shrinks by averaging without a copy of the whole image
# Tried one after the other until the file is small enough; noise at the last setting takes a fifth of the bound.
_SETTINGS = ((SIDE, 60), (SIDE, 30), (96, 20), (48, 10))


def thumbnail(image: Image.Image) -> bytes:
    """A WebP (where Pillow lacks that: JPEG) of at most `MOST_BYTES` bytes and `SIDE` x `SIDE` pixels.

    Args:
        image: as `PIL.Image.open` gives it, decoded or not. It appears as it does to models (`Upright`), uncropped.

    Raises:
        Exception: whatever Pillow raises for a damaged file.
    """
    image.load()
    small = Upright(_shrunken(image), orientation(image)).whole()
    content = b""
    for side, quality in _SETTINGS:
        # Of the shrunken image each time: a thumbnail of a thumbnail is blurred twice.
        copy = small.copy()
        copy.thumbnail((side, side), Image.Resampling.BICUBIC)
        content = _encoded(copy, quality)
        if len(content) <= MOST_BYTES:
            break
    return content


def media_type(content: bytes) -> str:
    """The media type of a thumbnail's bytes."""
    return "image/webp" if content[:4] == b"RIFF" else "image/jpeg"


def _shrunken(image: Image.Image) -> Image.Image:
    """An image with few times the pixels of a thumbnail, so that the rest of the work does not depend on its size."""
    factor = max(image.size) // (2 * SIDE)
    if factor < 2:
        return image
    if image.mode in _AVERAGED:
        return image.reduce(factor)
    # Other modes would be converted as a whole first. Of four samples a side each thumbnail's pixel is an average.
    scale = 4 * SIDE / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST)


def _encoded(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    if features.check("webp"):
        image.save(stream, "WEBP", quality=quality, method=2)
    else:
        image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
