"""The measured memory of decoding is never more than what was expected from the header."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_images import Kind, encoded, png, tiff_of_one_tile, with_orientation
from PIL import Image, ImageFile, features

from cloob_cli.data.decoding_memory import MemoryBudget
from cloob_cli.data.preprocess import Preprocess, _opened, read_crop
from cloob_cli.errors import ImageError

SIDES = (2400, 1600)  # 4 million pixels: bands of several kinds, and little time


def gradient(size: tuple[int, int]) -> Image.Image:
    gray = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (gray, gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT), gray))


def rgba(size: tuple[int, int]) -> Image.Image:
    image = gradient(size)
    image.putalpha(image.getchannel("R"))
    return image


def gray16(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.asarray(gradient(size).convert("L")).astype(np.uint16) * 257)


KINDS: dict[str, Kind] = {
    "jpeg": lambda size: encoded(gradient(size), "JPEG"),
    "jpeg, turned": lambda size: with_orientation(gradient(size), 6),
    "jpeg, progressive": lambda size: encoded(gradient(size), "JPEG", progressive=True, subsampling=0),
    "jpeg, progressive CMYK": lambda size: encoded(gradient(size).convert("CMYK"), "JPEG", progressive=True),
    "png": lambda size: encoded(gradient(size), "PNG", compress_level=1),
    "png, RGBA of 16 bits": lambda size: png(*size, depth=16, color=6),
    "png, RGBA of 16 bits, tall": lambda size: png(*size[::-1], depth=16, color=6),
    "png, interlaced": lambda size: png(*size, interlaced=True),
    "png, gray of 16 bits": lambda size: encoded(gray16(size), "PNG", compress_level=1),
    "png, one column": lambda size: png(1, size[0] * size[1], color=0),
    "gif": lambda size: encoded(gradient(size).convert("P"), "GIF", transparency=3),
    "bmp": lambda size: encoded(gradient(size), "BMP"),
    "tiff, one strip": lambda size: encoded(rgba(size), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 9999}),
    "tiff, turned": lambda size: with_orientation(gradient(size), 6, "TIFF", compression="tiff_lzw"),
    "tiff, float": lambda size: encoded(gradient(size).convert("F"), "TIFF", compression="tiff_lzw"),
    "webp": lambda size: encoded(gradient(size), "WEBP", quality=10, method=0),
    "webp, lossless": lambda size: encoded(rgba(size), "WEBP", lossless=True, quality=0, method=0),
    "avif": lambda size: encoded(rgba(size), "AVIF", speed=10, subsampling="4:4:4"),
    "jpeg 2000": lambda size: encoded(rgba(size), "JPEG2000", irreversible=True, quality_layers=[500]),
    "icon": lambda size: encoded(rgba((1024, 1024)), "ICNS"),
    "sgi": lambda size: encoded(gradient(size), "SGI"),
    "tga": lambda size: encoded(gradient(size), "TGA", compression="tga_rle"),
    "ppm, text": lambda size: b"P3 %d %d 255\n" % (size[0] // 4, size[1] // 4) + b"1 2 3 " * (size[0] * size[1] // 16),
}
NEEDS = {"webp": "webp", "avif": "avif", "jpeg 2000": "jpg_2000"}
SOME = ["jpeg", "jpeg, progressive CMYK", "png, RGBA of 16 bits, tall", "tiff, float", "webp"]


def available(name: str) -> bool:
    return all(features.check(feature) for start, feature in NEEDS.items() if name.startswith(start))


def measured(folder: Path, names: list[str], decoding: str) -> dict[str, tuple[int, int]]:
    files = []
    for number, name in enumerate(names):
        files.append(folder / f"{number}")
        files[-1].write_bytes(KINDS[name](SIDES))
        (folder / f"small-{number}").write_bytes(KINDS[name]((64, 48)))
    script = Path(__file__).parents[1] / "helpers" / "decoding_memory.py"
    command = [sys.executable, "-W", "ignore", str(script), decoding, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    return dict(zip(names, lines, strict=True))  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell")
@pytest.mark.parametrize("decoding", ["exact", pytest.param("scaled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "names", [SOME, pytest.param([name for name in KINDS if name not in SOME], marks=pytest.mark.slow)]
)
def test_decoding_takes_no_more_than_expected(names: list[str], decoding: str, tmp_path: Path) -> None:
    results = measured(tmp_path, [name for name in names if available(name)], decoding)
    for name, (used, expected) in results.items():
        print(f"{name}: {used / 1e6:.1f} MB used, {expected / 1e6:.1f} MB expected")
    for name, (used, expected) in results.items():
        assert used <= expected, name
        assert used > 1e6, f"{name}: nothing was decoded"


def expected_bytes(data: bytes, size_hint: int | None = None) -> int:
    with _opened(data, size_hint) as (_, _, needed):
        return needed(224)


def planes_one_by_one(size: tuple[int, int]) -> bytes:
    """A baseline JPEG whose header announces a scan of its first plane only."""
    data = bytearray(encoded(gradient(size), "JPEG"))
    scan = data.index(b"\xff\xda")
    return bytes(data[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[scan + 14 :])


def test_a_jpeg_of_several_scans_counts_its_coefficients() -> None:
    pixels = SIDES[0] * SIDES[1]
    plain = expected_bytes(KINDS["jpeg"](SIDES))
    assert expected_bytes(KINDS["jpeg, progressive"](SIDES)) - plain == 6 * pixels
    assert expected_bytes(planes_one_by_one(SIDES)) - plain == 3 * pixels  # two planes have a quarter of the samples


def test_a_jpeg_that_is_decoded_smaller_takes_less() -> None:
    data = KINDS["jpeg"](SIDES)
    assert expected_bytes(data, size_hint=300) < expected_bytes(data) / 3


@pytest.mark.parametrize("data", [png(13_000, 13_000, depth=16, color=6, rows=1)], ids=["RGBA of 16 bits"])
def test_too_large_for_the_budget_is_one_line_before_it_is_decoded(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        read_crop(data, Preprocess(32), MemoryBudget(500_000_000))
    assert caught.value.message == (
        "too large: decoding 13000 x 13000 pixels may take 1.4 GB, the memory budget is 0.5 GB (--memory-budget)"
    )


def test_a_tiff_that_claims_a_huge_tile_is_taken_at_its_word() -> None:
    assert expected_bytes(tiff_of_one_tile(20_000)) > 4e8
    assert expected_bytes(tiff_of_one_tile(64)) < 2e6


def test_nothing_is_decoded_before_the_memory_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def load(image: Image.Image) -> None:
        decoded.append(image.format)
        raise OSError("decoded")

    small = {name: make((64, 48)) for name, make in KINDS.items() if available(name)}
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(Image.Image, "load", load)
    for name, data in small.items():
        assert expected_bytes(data) > 0, name
        assert not decoded, name


def test_budget_does_not_change_pixels() -> None:
    data = KINDS["png, gray of 16 bits"]((300, 200))
    wide, narrow = (read_crop(data, Preprocess(32), MemoryBudget(amount)) for amount in (10**12, 5_000_000))
    np.testing.assert_array_equal(wide, narrow)
    np.testing.assert_array_equal(wide, Preprocess(32).crop(Image.open(io.BytesIO(data))))


def test_kinds_are_made_with_the_asked_size() -> None:
    make: Callable[[tuple[int, int]], bytes] = KINDS["png, interlaced"]
    assert Image.open(io.BytesIO(make((30, 20)))).size == (30, 20)
