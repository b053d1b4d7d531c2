"""Scaled decoding: a large image becomes smaller in its decoder, or by averaging, before it is resized.

Resized from fewer pixels an image is ready several times sooner and differs by a few levels of 255. How many are enough
for embeddings that stay within a cosine of 0.999 was measured: `scripts/measure_decoding.py`, docs/inference.md.
"""

from __future__ import annotations

from PIL import Image

from cloob_cli.data.upright_rgb import EXTREME_RATIO, Upright, orientation

# Both sides keep at least so many times the model's: of a JPEG whose decoder leaves the high frequencies out (by 2, 4
# or 8), and of an image whose pixels are averaged in squares, which filters less well.
JPEG_RESERVE = 3
AVERAGE_RESERVE = 4

_AVERAGED = {"RGB", "L", "CMYK"}  # modes that Pillow averages without a copy of the whole image


def averaged(image: Image.Image, side: int) -> int:
    """The number of pixels a side that may become one for a model's input of `side` pixels; 1 where nothing is gained.

    Args:
        image: opened; the mode and transparency of one that is not decoded yet may be told wrongly.
    """
    short, long = sorted(image.size)
    if image.mode not in _AVERAGED or image.has_transparency_data or long > EXTREME_RATIO * short:
        return 1
    return max(1, short // (AVERAGE_RESERVE * side))


def scaled(image: Image.Image, stored: tuple[int, int], side: int) -> Upright:
    """An image for a model's input of `side` pixels, averaged where it is large.

    Args:
        image: a JPEG's decoder may have been told to make it smaller; it is decoded here.
        stored: its size in the file.

    Raises:
        Exception: whatever Pillow raises for a damaged file.
    """
    image.load()
    turned = orientation(image)
    if image.format not in {"JPEG", "MPO"}:  # of others decoding may change the size
        stored = image.size
    factor = round(max(stored) / max(image.size))
    count = averaged(image, side)
    return Upright(image.reduce(count) if count > 1 else image, turned, stored, factor * count)
