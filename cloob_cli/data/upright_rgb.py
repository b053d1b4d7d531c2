"""A decoded image as every model sees it, upright and 8-bit RGB, in bands of rows.

Converted as a whole, an image of 178 million pixels would exist three times at four bytes a pixel: as it was decoded,
with alpha, and as RGB. Bands are converted and resized one after the other, with a bit-exact result.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

BAND_PIXELS = 1 << 20  # of one band: a few megabytes in each of the forms it goes through

# Beyond this ratio of the sides a whole resized image could take gigabytes of which the crop keeps a sliver.
EXTREME_RATIO = 16

Box = tuple[int, int, int, int]

_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Upright:
    """An image with its EXIF rotation applied, transparency laid on white, more than 8 bits scaled to 8 bits.

    Args:
        image: as `PIL.Image.open` gives it; it is decoded here.
        turned: the EXIF orientation; None reads the image's own.
        stored: the size in the file, where `image` was made smaller by `factor`: its last row and column may stand
            for fewer pixels than the others.

    Attributes:
        size: width and height.
        full: the same in the file.
        covered: left, top, right and bottom of what the whole image in the file covers: all, or up to a pixel less.

    Raises:
        Exception: whatever Pillow raises for a damaged file.
    """

    def __init__(
        self, image: Image.Image, turned: int | None = None, stored: tuple[int, int] | None = None, factor: int = 1
    ) -> None:
        image.load()
        self._image = image
        self._undo = _UNDO.get(orientation(image) if turned is None else turned)
        keeps_size = self._undo in _KEEP_SIZE
        self.size = image.size if keeps_size else image.size[::-1]
        stored = stored or image.size
        self.full = stored if keeps_size else stored[::-1]
        width, height = (side / factor for side in self.full)
        left = self.size[0] - width if self._undo in _LAST_COLUMN_FIRST else 0.0
        top = self.size[1] - height if self._undo in _LAST_ROW_FIRST else 0.0
        self.covered = (left, top, left + width, top + height)
        self._white = _white(image) if image.mode.startswith("I") or image.mode == "F" else None

    @property
    def is_plain(self) -> bool:
        """True where the decoded image is upright RGB already."""
        return self._image.mode == "RGB" and self._undo is None and not self._image.has_transparency_data

    def whole(self) -> Image.Image:
        """The image in one piece."""
        width, height = self.size
        if self.is_plain:
            return self._image
        if width * height <= BAND_PIXELS:
            return self.part((0, 0, width, height))
        paper = Image.new("RGB", self.size)
        for top, bottom in self.bands():
            paper.paste(self.part((0, top, width, bottom)), (0, top))
        return paper

    def bands(self) -> list[tuple[int, int]]:
        """First row and row behind the last one of every band, from top to bottom."""
        width, height = self.size
        rows = max(1, BAND_PIXELS // width)
        return [(top, min(top + rows, height)) for top in range(0, height, rows)]

    def part(self, box: Box) -> Image.Image:
        """The RGB pixels of a box (left, top, right, bottom) of the upright image."""
        part = self._image.crop(self._stored(box)) if box != (0, 0, *self.size) else self._image
        if self._undo is not None:
            part = part.transpose(self._undo)
        if self._white is not None:
            part = _to_8_bit(part, self._white)
        if part.has_transparency_data:
            part = part.convert("RGBA")
            paper = Image.new("RGBA", part.size, "white")
            paper.alpha_composite(part)
            part = paper
        if part.mode != "RGB":
            part = part.convert("RGB")
        if self._undo is not None:
            part.info = {}  # it would be turned again
        return part

    def _stored(self, box: Box) -> Box:
        """The box of the decoded image that becomes `box` of the upright one."""
        left, top, right, bottom = box
        width, height = self._image.size
        across, down = (width - right, width - left), (height - bottom, height - top)
        turned_across, turned_down = (width - bottom, width - top), (height - right, height - left)
        boxes: dict[Image.Transpose | None, Box] = {
            None: box,
            Image.Transpose.FLIP_LEFT_RIGHT: (across[0], top, across[1], bottom),
            Image.Transpose.ROTATE_180: (across[0], down[0], across[1], down[1]),
            Image.Transpose.FLIP_TOP_BOTTOM: (left, down[0], right, down[1]),
            Image.Transpose.TRANSPOSE: (top, left, bottom, right),
            Image.Transpose.ROTATE_270: (top, turned_down[0], bottom, turned_down[1]),
            Image.Transpose.TRANSVERSE: (turned_across[0], turned_down[0], turned_across[1], turned_down[1]),
            Image.Transpose.ROTATE_90: (turned_across[0], left, turned_across[1], right),
        }
        return boxes[self._undo]


_KEEP_SIZE = {
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
}
# Where the upright image begins with what was last: the right or bottom edge of the stored one.
_LAST_COLUMN_FIRST = {
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
_LAST_ROW_FIRST = {
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
}


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none."""
    try:
        value: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value
    except Exception:  # broken metadata is no reason to lose the image
        return 1


def _white(image: Image.Image) -> float:
    """The value that becomes 255 in an image of more than 8 bits, which Pillow's own conversion would clip there."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    bands = (image.crop((0, top, width, min(top + rows, height))) for top in range(0, height, rows))
    largest = max(float(_values(band).max()) for band in bands)
    full = 65535.0 if image.mode != "F" else 1.0 if largest <= 1.0 else 255.0
    return max(full, largest)


def _to_8_bit(image: Image.Image, white: float) -> Image.Image:
    values = _values(image)
    values *= 255.0 / white
    return Image.fromarray(np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8))


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float64), copy=False)
