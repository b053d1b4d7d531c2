"""The claims of docs/inference.md about pixels: the commands', `model.preprocess`'s and the reference programs'."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

import cloob_cli
from cloob_cli.data.preprocess import Preprocess, normalize
from cloob_cli.errors import ImageError
from cloob_cli.inference.image_batches import image_batches

SIZE = 32
RANDOM = np.random.default_rng(0)
SMOOTH = Image.fromarray(RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(SMOOTH, "JPEG", exif=exif)


def with_alpha() -> Image.Image:
    image = SMOOTH.copy()
    image.putalpha(Image.linear_gradient("L").resize(SMOOTH.size))
    return image


def with_black() -> Image.Image:
    cyan, magenta, yellow, _ = SMOOTH.convert("CMYK").split()
    return Image.merge("CMYK", (cyan, magenta, yellow, SMOOTH.convert("L")))


GRAY = SMOOTH.convert("L")
EQUAL = {
    "RGB": encoded(SMOOTH),
    "RGB, JPEG": encoded(SMOOTH, "JPEG"),
    "grayscale": encoded(GRAY),
    "grayscale, JPEG": encoded(GRAY, "JPEG"),
    "EXIF that says upright": rotated(1),
    "opaque alpha": encoded(SMOOTH.convert("RGBA")),
    "CMYK without black": encoded(SMOOTH.convert("CMYK"), "TIFF"),
}
# The least and the largest difference of a channel that is meant, in levels of 255.
DIFFERENT = {
    **{f"EXIF {n}": (rotated(n), 100, 255) for n in range(2, 9)},
    "palette": (encoded(SMOOTH.quantize(64)), 20, 255),
    "GIF": (encoded(SMOOTH.quantize(64), "GIF"), 20, 255),
    "1-bit": (encoded(SMOOTH.convert("1")), 100, 255),
    "RGBA": (encoded(with_alpha()), 100, 255),
    "WebP with alpha": (encoded(with_alpha(), "WEBP", lossless=True), 100, 255),
    "gray with alpha": (encoded(with_alpha().convert("LA")), 100, 255),
    "color key": (encoded(Image.new("RGB", (90, 60), "red"), transparency=(255, 0, 0)), 255, 255),
    "16-bit": (encoded(Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257)), 100, 255),
    "float": (encoded(GRAY.convert("F"), "TIFF"), 1, 1),
    "CMYK with black": (encoded(with_black(), "TIFF"), 1, 40),
}
if int(PIL.__version__.split(".")[0]) >= 13:  # before, Pillow could not read its own uncompressed YCbCr files
    DIFFERENT["YCbCr"] = (encoded(SMOOTH.convert("YCbCr"), "TIFF"), 1, 10)
ALL = EQUAL | {name: data for name, (data, _, _) in DIFFERENT.items()}


def reference_crop(data: bytes) -> np.ndarray:
    """Resize of the short side, center crop, and only then RGB: the order of CLIP's, open_clip's and ml-jku's."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    long = int(SIZE * max(width, height) / min(width, height))
    resized = (long, SIZE) if width > height else (SIZE, long)
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (round((side - SIZE) / 2) for side in resized)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)).convert("RGB"))


def commands_crop(folder: Path, data: bytes) -> np.ndarray:
    path = folder / "image"
    path.write_bytes(data)
    [batch] = image_batches([path], Preprocess(SIZE), batch_size=1)
    return batch.pixels[0].numpy()


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_the_reference_programs(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(commands_crop(tmp_path, EQUAL[name]), reference_crop(EQUAL[name]))


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_from_the_reference_programs(name: str, tmp_path: Path) -> None:
    data, least, most = DIFFERENT[name]
    difference = np.abs(commands_crop(tmp_path, data).astype(int) - reference_crop(data).astype(int)).max()
    assert least <= difference <= most


@pytest.mark.parametrize("name", ALL)
def test_public_preprocess_gives_what_the_commands_get(name: str, tmp_path: Path) -> None:
    model = cloob_cli.load("cloob-xs-pictograms", device="cpu")
    path = tmp_path / "image"
    path.write_bytes(ALL[name])
    size = model.config.vision.image_size
    [batch] = image_batches([path], Preprocess(size, model.config.preprocess), batch_size=1)
    with Image.open(path) as image:
        pixels = model.preprocess(image)
    assert pixels.equal(normalize(batch.pixels, model.config.preprocess)[0])


def test_an_image_that_was_turned_upright_is_not_turned_again() -> None:
    from PIL import ImageOps

    preprocess = Preprocess(SIZE)
    image = Image.open(io.BytesIO(rotated(6)))
    assert preprocess(ImageOps.exif_transpose(image)).equal(preprocess(image))


def test_a_truncated_file_is_an_image_error() -> None:
    image = Image.open(io.BytesIO(EQUAL["RGB, JPEG"][:-200]))
    with pytest.raises(ImageError, match="truncated"):
        Preprocess(SIZE)(image)
