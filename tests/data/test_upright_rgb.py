"""Bands of an image against the image in one piece."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from cloob_cli.core.model_config import PreprocessConfig
from cloob_cli.data import preprocess, upright_rgb
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.upright_rgb import Upright

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (90, 130, 4), dtype=np.uint8)
RGBA = Image.fromarray(NOISE)
RGB = RGBA.convert("RGB")


def palette(**options: object) -> Image.Image:
    stream = io.BytesIO()
    RGB.quantize(40).save(stream, "PNG", **options)
    return Image.open(stream)


KINDS = {
    "RGB": RGB,
    "RGBA": RGBA,
    "LA": RGBA.convert("LA"),
    "L": RGB.convert("L"),
    "1": RGB.convert("1"),
    "palette": palette(),
    "palette with one transparent entry": palette(transparency=3),
    "palette with alphas": palette(transparency=bytes(range(40))),
    "CMYK": RGB.convert("CMYK"),
    "16-bit": Image.fromarray(RANDOM.integers(0, 65536, (90, 130), dtype=np.uint16)),
    "32-bit": Image.fromarray(RANDOM.integers(0, 2**20, (90, 130), dtype=np.int32)),
    "float": Image.fromarray(RANDOM.normal(0.5, 0.4, (90, 130)).astype(np.float32)),
}


@pytest.fixture(params=[None, 1000, 1], ids=["whole", "bands of 7 rows", "bands of one row"])
def bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(upright_rgb, "BAND_PIXELS", request.param)
        monkeypatch.setattr(preprocess, "BAND_PIXELS", request.param)
    return


def turned(image: Image.Image, orientation: int) -> Image.Image:
    image = image.copy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return image


def in_one_piece(image: Image.Image) -> Image.Image:
    """Turned, scaled to 8 bits and laid on white as a whole."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        largest = values.max()
        full = max(largest, 65535.0 if image.mode != "F" else 1.0 if largest <= 1 else 255.0)
        image = Image.fromarray(np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    np.testing.assert_array_equal(np.asarray(Upright(KINDS[kind]).whole()), np.asarray(in_one_piece(KINDS[kind])))


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["RGB", "palette with one transparent entry", "16-bit"])
def test_orientations(kind: str, orientation: int) -> None:
    image = turned(KINDS[kind], orientation)
    expected = in_one_piece(image)
    found = Upright(image)
    assert found.size == expected.size
    np.testing.assert_array_equal(np.asarray(found.whole()), np.asarray(expected))
    box = (3, 5, 40, 71)
    np.testing.assert_array_equal(np.asarray(found.part(box)), np.asarray(expected.crop(box)))
    again = Upright(found.whole())  # is not turned twice
    np.testing.assert_array_equal(np.asarray(again.whole()), np.asarray(expected))


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(130, 90), (30, 90), (130, 9), (13, 13)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_crops_are_those_of_the_whole_image(
    kind: str, orientation: int, size: tuple[int, int], interpolation: str
) -> None:
    image = turned(KINDS[kind].crop((0, 0, *size)), orientation)
    config = PreprocessConfig(interpolation=interpolation)
    side, whole = 24, in_one_piece(image)
    width, height = whole.size
    long = int(side * max(width, height) / min(width, height))
    resized = (long, side) if width > height else (side, long)
    left, top = (round((length - side) / 2) for length in resized)
    whole = whole.resize(resized, Image.Resampling[interpolation.upper()])
    expected = whole.crop((left, top, left + side, top + side))
    np.testing.assert_array_equal(Preprocess(side, config).crop(image), np.asarray(expected))


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("orientation", [1, 6])
def test_squashed(orientation: int) -> None:
    image = turned(RGBA, orientation)
    expected = in_one_piece(image).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(Preprocess(24, PreprocessConfig(resize="squash")).crop(image), np.asarray(expected))


@pytest.mark.parametrize("size", [(4000, 3), (3, 4000), (130, 1), (1, 130), (2000, 100), (100, 2000)])
def test_very_long_images_are_cropped_as_if_resized_whole(size: tuple[int, int]) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    side, (width, height) = 24, size
    long = int(side * max(size) / min(size))
    resized = (long, side) if width > height else (side, long)
    left, top = (round((length - side) / 2) for length in resized)
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    # Coefficients come from places that are rounded differently: one level, and one more as margin.
    assert np.abs(Preprocess(side).crop(image).astype(int) - np.asarray(expected).astype(int)).max() <= 2
