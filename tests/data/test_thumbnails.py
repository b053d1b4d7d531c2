"""Thumbnails of images of every kind: what they show, and how large they can get."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloob_cli.data.thumbnails import MOST_BYTES, SIDE, media_type, thumbnail

MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F"]


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def halves(width: int, height: int, mode: str) -> Image.Image:
    """Black on the left, white on the right."""
    values = np.zeros((height, width), np.uint8)
    values[:, width // 2 :] = 255
    if mode in ("I;16", "I"):
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(3, 2), (200, 100), (1600, 1200)])
def test_every_mode_and_size_shows_the_whole_image(mode: str, size: tuple[int, int]) -> None:
    small = opened(thumbnail(halves(*size, mode)))
    assert small.mode == "RGB"
    assert max(small.size) == min(SIDE, max(size))
    pixels = np.asarray(small.convert("L"))
    assert pixels[:, 0].max() < 64
    assert pixels[:, -1].min() > 192


def test_noise_stays_below_the_bound_and_the_images_themselves_are_not_changed() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8))
    for image in (noise, noise.resize((128, 128)), noise.convert("CMYK"), noise.resize((127, 4))):
        before = image.tobytes()
        content = thumbnail(image)
        assert len(content) <= MOST_BYTES
        assert image.tobytes() == before


def test_extreme_sides_and_transparency() -> None:
    assert opened(thumbnail(Image.new("RGB", (30_000, 3), "red"))).size == (SIDE, 1)
    assert opened(thumbnail(Image.new("LA", (3, 30_000)))).size == (1, SIDE)
    clear = opened(thumbnail(Image.new("RGBA", (900, 900), (0, 0, 0, 0))))
    assert np.asarray(clear).min() > 250  # transparency lies on white, as models see it


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_rotation_in_the_metadata_is_applied(suffix: str, tmp_path: Path) -> None:
    image = halves(1200, 600, "RGB")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left side is the top
    image.save(tmp_path / f"x.{suffix}", exif=exif)
    with Image.open(tmp_path / f"x.{suffix}") as stored:
        small = opened(thumbnail(stored))
    assert small.size == (SIDE // 2, SIDE)
    pixels = np.asarray(small.convert("L"))
    assert pixels[0].max() < 64
    assert pixels[-1].min() > 192


def test_without_webp_it_is_a_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    image = halves(300, 200, "RGB")
    assert media_type(thumbnail(image)) == "image/webp"
    monkeypatch.setattr("cloob_cli.data.thumbnails.features.check", lambda name: False)
    content = thumbnail(image)
    assert media_type(content) == "image/jpeg"
    assert opened(content).format == "JPEG"
