"""Images that are made smaller before they are resized: the same part of the image, within a few levels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hostile_images import encoded, with_orientation
from margins import within
from PIL import Image

from cloob_cli.core.model_config import PreprocessConfig
from cloob_cli.data.decoding_memory import MemoryBudget
from cloob_cli.data.preprocess import Preprocess, open_image, read_crop
from cloob_cli.data.scaled_decoding import AVERAGE_RESERVE, averaged

BUDGET = MemoryBudget(10**9)
# Sides of which neither 8, 5 nor 2 is a divisor: the last row and column of a smaller image stand for part of a pixel.
ODD = (417, 301)
SIDE = 16
MEAN_LEVELS = 2.0
REASON = "measured: at most 0.8 of 255 levels; 3 to 9 where the part of a pixel at the end is forgotten or misplaced"


def scene(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Blobs a few pixels wide in the crop, so that a shift by a part of a pixel shows."""
    noise = np.random.default_rng(5).integers(0, 256, (14, 18, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def check_near(exact: np.ndarray, scaled: np.ndarray) -> None:
    """The crops differ, but hardly."""
    difference = np.abs(exact - scaled)
    assert difference.max() > 0, "it was not made smaller"
    within(difference.mean(), MEAN_LEVELS, REASON)


def both(data: bytes, preprocess: Preprocess | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The exact crop and the scaled one, int."""
    preprocess = preprocess or Preprocess(SIDE)
    exact, scaled = (read_crop(data, preprocess, BUDGET, exact=exact).astype(int) for exact in (True, False))
    return exact, scaled


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [ODD, ODD[::-1]], ids=["wide", "tall"])
@pytest.mark.numeric
def test_a_turned_jpeg_is_cut_where_the_exact_one_is(size: tuple[int, int], orientation: int) -> None:
    exact, scaled = both(with_orientation(scene(size), orientation, quality=95))
    check_near(exact, scaled)


@pytest.mark.parametrize("size", [ODD, ODD[::-1], (303, 301)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize(("mode", "form"), [("RGB", "PNG"), ("L", "PNG"), ("RGB", "WEBP"), ("CMYK", "TIFF")])
@pytest.mark.numeric
def test_what_is_averaged_is_cut_where_the_exact_one_is(mode: str, form: str, size: tuple[int, int]) -> None:
    exact, scaled = both(encoded(scene(size, mode), form, **({"lossless": True} if form == "WEBP" else {})))
    check_near(exact, scaled)


@pytest.mark.numeric
def test_a_very_large_jpeg_is_decoded_smaller_and_averaged() -> None:
    data = encoded(scene((1203, 1001)), "JPEG", quality=95)
    decoded = Image.open(io.BytesIO(data))
    decoded.draft(None, (3 * 8, 3 * 8))
    assert averaged(decoded, 8) > 1
    exact, scaled = both(data, Preprocess(8))
    check_near(exact, scaled)


@pytest.mark.numeric
def test_an_image_that_is_squashed() -> None:
    preprocess = Preprocess(SIDE, PreprocessConfig(resize="squash"))
    for data in (with_orientation(scene(ODD), 6, quality=95), encoded(scene(ODD), "PNG")):
        exact, scaled = both(data, preprocess)
        check_near(exact, scaled)


@pytest.mark.numeric
def test_a_long_strip_keeps_its_middle() -> None:
    exact, scaled = both(encoded(scene((2003, 109)), "JPEG", quality=95))
    check_near(exact, scaled)


@pytest.mark.parametrize(
    "data",
    [
        encoded(scene((3 * SIDE * 2 - 1, 400)).crop((0, 0, 3 * SIDE * 2 - 1, 191)), "JPEG"),
        encoded(scene((400, 2 * AVERAGE_RESERVE * SIDE - 1)), "PNG"),
        encoded(scene(ODD).convert("RGBA").rotate(1, fillcolor=(0, 0, 0, 0)), "PNG"),
        encoded(scene(ODD).convert("P"), "PNG"),
        encoded(scene((219, 4003)), "PNG"),
    ],
    ids=["a small JPEG", "a small PNG", "transparent", "a palette", "a strip"],
)
def test_what_is_not_made_smaller_is_exact(data: bytes) -> None:
    exact, scaled = both(data)
    np.testing.assert_array_equal(exact, scaled)


def test_the_public_preprocess_and_training_are_exact() -> None:
    data = encoded(scene(ODD), "JPEG")
    whole = open_image(data)
    assert whole.size == ODD
    crop = Preprocess(SIDE).crop(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(crop, Preprocess(SIDE).crop(whole))
    np.testing.assert_array_equal(crop, read_crop(data, Preprocess(SIDE), BUDGET, exact=True))


def test_the_image_is_handed_on_as_it_was_decoded() -> None:
    seen: list[tuple[int, int]] = []
    read_crop(encoded(scene(ODD), "PNG"), Preprocess(SIDE), BUDGET, also=lambda image: seen.append(image.size))
    assert seen == [ODD]
