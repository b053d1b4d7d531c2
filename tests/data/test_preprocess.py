"""Images of every kind, good and hostile; crops against those of the reference programs."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from margins import close
from PIL import Image
from safetensors.numpy import load_file

from cloob_cli.core.model_config import PreprocessConfig
from cloob_cli.data.preprocess import Preprocess, normalize, open_image
from cloob_cli.errors import ImageError

GOLDEN = Path(__file__).parents[1] / "golden" / "images"
INDEX = json.loads((GOLDEN / "images.json").read_text())
CROPS = load_file(GOLDEN / "pixels_uint8_hwc.safetensors")

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def as_bytes(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", INDEX["images"], ids=lambda case: case["file"])
def test_crop_equals_the_reference_to_the_bit(case: dict) -> None:
    crop = Preprocess(case["size"]).crop(open_image(GOLDEN / case["file"]))
    np.testing.assert_array_equal(crop, CROPS[case["file"]])


@pytest.mark.numeric
def test_normalized_pixels_equal_the_reference_arithmetic() -> None:
    case = INDEX["images"][1]
    pixels = Preprocess(case["size"])(open_image(GOLDEN / case["file"]))
    scaled = CROPS[case["file"]].astype(np.float64) / 255
    expected = ((scaled - INDEX["mean"]) / INDEX["std"]).transpose(2, 0, 1)
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.float32
    close(pixels.double(), expected, "numbers of up to 2.6 in float32, rounded a few times", atol=1e-6)


def test_normalize_takes_both_layouts() -> None:
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    config = PreprocessConfig()
    last, first = normalize(pixels, config), normalize(pixels.permute(0, 3, 1, 2), config)
    assert last.shape == (2, 3, 5, 7)
    assert torch.equal(last, first)


@pytest.mark.parametrize(("size", "expected"), [((300, 100), (64, 64)), ((31, 1000), (64, 64)), ((1, 1), (64, 64))])
def test_crop_has_the_asked_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Preprocess(64).crop(Image.new("RGB", size, RED)).shape == (*expected, 3)


def test_a_very_long_image_is_cropped_without_resizing_the_whole() -> None:
    stripe = Image.new("RGB", (60_000, 2), RED)
    stripe.paste(BLUE, (29_000, 0, 31_000, 2))
    crop = Preprocess(224).crop(stripe)  # whole, it would become 6,720,000 x 224
    assert (crop == BLUE).all()


def test_squash_keeps_the_whole_image() -> None:
    image = Image.new("RGB", (200, 50), RED)
    image.paste(BLUE, (100, 0, 200, 50))
    crop = Preprocess(20, PreprocessConfig(resize="squash")).crop(image)
    assert tuple(crop[0, 0]) == RED
    assert tuple(crop[0, 19]) == BLUE


# --- kinds of images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), WHITE)
    upright.paste(RED, (0, 0, 20, 10))  # red marks the top left
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(as_bytes(stored, exif=exif))
    assert opened.size == (40, 20)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(upright))


def test_broken_exif_does_not_lose_the_image() -> None:
    data = as_bytes(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert open_image(data).size == (8, 8)


def black_and_transparent() -> Image.Image:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 2))
    return image


def one_transparent_entry() -> bytes:
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, 0, 0, 0])  # both entries are black; the second is see-through
    palette.paste(0, (0, 0, 2, 2))
    return as_bytes(palette, transparency=1)


@pytest.mark.parametrize(
    "data",
    [
        as_bytes(black_and_transparent()),
        as_bytes(black_and_transparent().convert("LA")),
        as_bytes(black_and_transparent().quantize(4)),
        as_bytes(black_and_transparent(), "WEBP", lossless=True),
        one_transparent_entry(),
    ],
    ids=["RGBA", "LA", "palette with alphas", "WebP", "palette with one entry"],
)
def test_transparency_is_laid_on_white(data: bytes) -> None:
    opened = open_image(data)
    assert opened.mode == "RGB"
    assert pixel(opened, 0, 0) == (0, 0, 0)
    assert pixel(opened, 3, 1) == WHITE


def test_half_transparent_is_mixed_with_white() -> None:
    assert pixel(open_image(as_bytes(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))), 0, 0) == (255, 127, 127)


def test_a_color_key_is_transparent() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    opened = open_image(as_bytes(image, transparency=BLUE))
    assert [pixel(opened, 0, 0), pixel(opened, 1, 0)] == [RED, WHITE]


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = open_image(as_bytes(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(opened)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("brightest", [1.0, 255.0, 1000.0])
def test_float_values_are_scaled(brightest: float) -> None:
    values = np.array([[0, brightest / 2, brightest, np.nan]], dtype=np.float32)
    opened = np.asarray(open_image(as_bytes(Image.fromarray(values), "TIFF")))
    assert np.abs(opened[0, :, 0].astype(int) - [0, 128, 255, 0]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, form: str) -> None:
    opened = open_image(as_bytes(Image.new("RGB", (8, 8), WHITE).convert(mode), form))
    assert opened.mode == "RGB"
    assert min(pixel(opened, 4, 4)) >= 253


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_stands_for_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    data = as_bytes(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    assert pixel(open_image(data), 4, 4) == RED


def test_contents_count_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really-a-jpeg.png"
    Image.new("RGB", (8, 8), WHITE).save(path, "JPEG")
    assert open_image(path).size == (8, 8)


def test_size_hint_decodes_a_jpeg_smaller_but_large_enough() -> None:
    data = as_bytes(Image.new("RGB", (1600, 800), RED), "JPEG")
    assert open_image(data).size == (1600, 800)
    assert open_image(data, size_hint=200).size == (400, 200)
    assert open_image(data, size_hint=801).size == (1600, 800)


# --- what cannot be read --------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A small file that claims any size: the header, and one kilobyte of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"this is no image\n" * 10, "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "html": (b"<!doctype html><title>404</title>", "not an image"),
    "truncated jpeg": (as_bytes(NOISE, "JPEG")[:1500], "truncated"),
    "truncated png": (as_bytes(NOISE)[:5000], "truncated"),
    "truncated webp": (as_bytes(NOISE, "WEBP")[:500], ""),
    "truncated gif": (as_bytes(NOISE.quantize(), "GIF")[:900], ""),
    "jpeg of three bytes": (b"\xff\xd8\xff", ""),
    "bomb": (png_of(60_000, 60_000), "too large"),
    "large": (png_of(20_000, 10_000), "too large"),
    "no pixels": (png_of(5_000, 5_000), ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_one_line(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert reason in caught.value.message
        assert "\n" not in caught.value.message
        assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_a_image_or_an_image_error(form: str) -> None:
    good = as_bytes(NOISE if form != "GIF" else NOISE.quantize(), form)
    random = np.random.default_rng(1)
    messages = []
    for _ in range(60):
        data = bytearray(good)
        for place in random.integers(0, min(len(data), 400), 5):
            data[place] = random.integers(0, 256)
        try:
            assert open_image(bytes(data[: random.integers(1, len(data) + 1)])).mode == "RGB"
        except ImageError as problem:
            messages.append(problem.message)
    assert messages
    assert not any("\n" in message for message in messages)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)
