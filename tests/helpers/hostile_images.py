"""Image files of every hostile kind: damaged, lying, and far larger than they look."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Size = tuple[int, int]
Kind = Callable[[Size], bytes]
_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def with_orientation(image: Image.Image, orientation: int, form: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    color: int = 2,
    interlaced: bool = False,
    rows: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A black PNG, made row by row: of `rows` rows only, and with further chunks `before` the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    packer = zlib.compressobj(1)
    packed = []
    for left, top, right, down in _PASSES if interlaced else [(0, 0, 1, 1)]:
        count = (width - left + right - 1) // right
        row = bytes(1 + (count * depth * _CHANNELS[color] + 7) // 8) if count > 0 else b""
        wanted = (height - top + down - 1) // down if rows is None else rows
        block = row * max(1, min(wanted, 1_000_000 // max(1, len(row))))  # many short rows at once
        for start in range(0, wanted * len(row), len(block) or 1):
            packed.append(packer.compress(block[: wanted * len(row) - start]))
    packed.append(packer.flush())
    palette = chunk(b"PLTE", bytes(range(6))) if color == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + before
        + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")
    )  # fmt: skip


def gif(screen: Size, frame: Size, data: bytes = b"\x02\x4c\x01") -> bytes:
    """A GIF with a screen and a first frame of these sizes; by default with hardly any pixels."""
    palette = bytes(12)
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF1, 0, 0) + palette
        + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02" + data + b"\x00;"
    )  # fmt: skip


def ico_of(data: bytes) -> bytes:
    """An icon that says 16 x 16 and holds `data`."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22) + data


def icns_of(data: bytes) -> bytes:
    """An Apple icon that says 128 x 128 and holds `data`."""
    return b"icns" + struct.pack(">I", 16 + len(data)) + b"ic07" + struct.pack(">I", 8 + len(data)) + data


def bmp(width: int, height: int, bits: int = 24, data: bytes = b"") -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0) + data
    )  # fmt: skip


def tiff_of_one_tile(side: int) -> bytes:
    """A small packed TIFF that claims to be one tile of side x side pixels."""
    width, height = struct.pack("<HHII", 322, 4, 1, side), struct.pack("<HHII", 323, 4, 1, side)
    data = encoded(noise(), "TIFF")
    # Instead of the rows in a strip and of the order of planes; then strips become tiles, and they are packed.
    data = patched(data, struct.pack("<HHI", 278, 4, 1), 0, width)
    data = patched(data, struct.pack("<HHI", 284, 3, 1), 0, height)
    for before, after in ((273, 324), (279, 325)):
        data = patched(data, struct.pack("<HH", before, 4), 0, struct.pack("<H", after))
    return patched(data, struct.pack("<HHI", 259, 3, 1), 8, struct.pack("<H", 8))


def patched(data: bytes, place: bytes, offset: int, new: bytes) -> bytes:
    """`data` with `new` written `offset` bytes behind every `place`."""
    changed = bytearray(data)
    start = changed.find(place)
    while start >= 0:
        changed[start + offset : start + offset + len(new)] = new
        start = changed.find(place, start + 1)
    return bytes(changed)


def noise(size: Size = (64, 48), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def _floats() -> bytes:
    values = np.full((40, 40), np.nan, np.float32)
    values[:20] = np.inf
    return encoded(Image.fromarray(values), "TIFF")


def unreadable() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """name with suffix -> what the reason must say, and the file's contents."""
    jpeg, tiff = encoded(noise(), "JPEG"), encoded(noise(), "TIFF", compression="tiff_lzw")
    jpeg2000, avif, webp = (encoded(noise(), form) for form in ("JPEG2000", "AVIF", "WEBP"))
    return {
        "empty.png": ("empty", lambda: b""),
        "text.jpg": ("not an image", lambda: b"this is no image\n" * 10),
        "error page.jpg": ("not an image", lambda: b"<!doctype html><title>404</title>"),
        "postscript.png": ("not an image", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        "pdf.jpg": ("not an image", lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
        "zip.png": ("not an image", lambda: b"PK\x03\x04" + bytes(60)),
        "svg.png": ("not an image", lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
        "pickle.png": ("not an image", lambda: pickle.dumps({"a": 1})),
        "zeros.tif": ("not an image", lambda: bytes(4096)),
        "random.jpg": ("not an image", lambda: np.random.default_rng(1).bytes(4096)),
        "three bytes.jpg": ("", lambda: b"\xff\xd8\xff"),
        "half.jpg": ("truncated", lambda: jpeg[: len(jpeg) // 2]),
        "header only.jpg": ("", lambda: jpeg[: jpeg.index(b"\xff\xda")]),
        "claims 4 billion pixels.jpg": ("too large", lambda: patched(jpeg, b"\xff\xc0", 5, b"\xff\xdc\xff\xdc")),
        "half.png": ("truncated", lambda: encoded(noise(), "PNG")[:5000]),
        "signature.png": ("", lambda: b"\x89PNG\r\n\x1a\n"),
        "wrong checksum.png": ("", lambda: patched(png(40, 40), b"IHDR", 4, struct.pack(">I", 41))),
        "no pixels.png": ("", lambda: png(5000, 5000, rows=0)),
        "no rows.png": ("", lambda: png(40, 0)),
        "not packed.png": ("", lambda: patched(encoded(noise(), "PNG"), b"IDAT", 4, b"\xff" * 2000)),
        "bomb.png": ("too large", lambda: png(60_000, 60_000, rows=1)),
        "200 million.png": ("too large", lambda: png(20_000, 10_000, rows=1)),
        "texts that unpack.png": (
            "", lambda: png(40, 40, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(4 << 20))) * 40)
        ),
        "bomb.gif": ("too large", lambda: gif((65_535, 65_535), (65_535, 65_535))),
        "frame larger than the screen.gif": ("too large", lambda: gif((1, 1), (65_535, 65_535))),
        "half.gif": ("", lambda: encoded(noise(mode="P"), "GIF")[:900]),
        "half.webp": ("", lambda: webp[: len(webp) // 2]),
        "header.webp": ("", lambda: b"RIFF\xff\xff\xff\x7fWEBPVP8 "),
        "huge.bmp": ("too large", lambda: bmp(30_000, 30_000)),
        "no pixels.bmp": ("", lambda: bmp(4000, 4000)),
        "odd depth.bmp": ("", lambda: bmp(40, 40, bits=17, data=bytes(4000))),
        "half.tif": ("", lambda: tiff[: len(tiff) // 2]),
        "directories in a circle.tif": ("", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        "a tile of 60000 x 60000.tif": ("too large", lambda: tiff_of_one_tile(60_000)),
        "no icons.ico": ("", lambda: struct.pack("<HHH", 0, 1, 0)),
        "large inside.ico": ("too large", lambda: ico_of(png(9000, 9000, color=0))),
        "large bitmap inside.ico": ("too large", lambda: ico_of(bmp(9000, 18_000)[14:])),
        "large inside.icns": ("too large", lambda: icns_of(encoded(Image.new("RGB", (3000, 2000)), "JPEG2000"))),
        "bomb inside.ico": ("too large", lambda: ico_of(png(60_000, 60_000, rows=1))),
        "bomb inside.icns": ("too large", lambda: icns_of(png(60_000, 60_000, rows=1))),
        "half.jp2": ("", lambda: jpeg2000[: len(jpeg2000) // 2]),
        "bomb.jp2": ("too large", lambda: patched(jpeg2000, b"ihdr", 4, struct.pack(">II", 60_000, 60_000))),
        "code stream of another size.jp2": (
            "", lambda: patched(jpeg2000, b"\xff\x4f\xff\x51", 8, struct.pack(">II", 60_000, 60_000))
        ),
        "half.avif": ("", lambda: avif[: len(avif) // 2]),
        "bomb.avif": ("", lambda: patched(avif, b"ispe", 8, struct.pack(">II", 60_000, 60_000))),
        "huge.ppm": ("too large", lambda: b"P6 100000 100000 255\n"),
        "letters.ppm": ("", lambda: b"P3 40 40 255\n" + b"abc " * 400),
        "huge.tga": ("too large", lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65_535, 65_535, 24, 0)),
        "huge.pcx": ("", lambda: b"\n\5\1\x08" + struct.pack("<4H", 0, 0, 65_534, 65_534) + bytes(116)),
        "huge.sgi": ("too large", lambda: struct.pack(">HBBHHHH", 474, 1, 1, 3, 65_535, 65_535, 3) + bytes(500)),
        "huge.qoi": ("too large", lambda: b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 4, 0)),
    }  # fmt: skip


def readable(side: int) -> dict[str, Callable[[], bytes]]:
    """Images that can be read, of about side x side pixels where that matters: name with suffix -> contents."""
    flat = Image.new("RGB", (side, side), (10, 120, 200))
    return {
        "RGBA of 16 bits.png": lambda: png(side, side, depth=16, color=6),
        "RGBA of 16 bits, again.png": lambda: png(side, side, depth=16, color=6),
        "interlaced.png": lambda: png(side, side, interlaced=True),
        "gray of 16 bits.png": lambda: png(side, side, depth=16, color=0),
        "palette.png": lambda: png(side, side, color=3, before=chunk(b"tRNS", b"\0")),
        "one bit.png": lambda: png(side, side, depth=1, color=0),
        "one column.png": lambda: png(1, side * side // 4, color=0),
        "one row.png": lambda: png(side * side // 4, 1),
        "large.gif": lambda: encoded(flat.convert("P"), "GIF", transparency=0),
        "icon.ico": lambda: encoded(noise((256, 256), "RGBA"), "ICO"),
        "icon.icns": lambda: encoded(noise((256, 256), "RGBA"), "ICNS"),
        "progressive CMYK.jpg": lambda: encoded(
            flat.resize((side // 2,) * 2).convert("CMYK"), "JPEG", progressive=True
        ),
        "turned.jpg": lambda: with_orientation(flat.crop((0, 0, side, side // 2)), 6),
        "one strip.tif": lambda: encoded(
            flat.resize((side // 2,) * 2), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: side}
        ),
        "not numbers.tif": _floats,
        "broken EXIF.jpg": lambda: encoded(
            noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage"
        ),
        "large.webp": lambda: encoded(flat.resize((side // 3,) * 2), "WEBP", lossless=True, quality=0, method=0),
        "large.avif": lambda: encoded(flat.resize((side // 3,) * 2), "AVIF", speed=10),
        "large.jp2": lambda: encoded(flat.resize((side // 4,) * 2), "JPEG2000"),
    }  # fmt: skip


def save_hostile_images(folder: Path, side: int) -> tuple[dict[str, str], list[str]]:
    """Write one file of each kind; returns (name -> what its reason must say) and the names of the readable ones."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons = {}
    for name, (reason, make) in unreadable().items():
        (folder / name).write_bytes(make())
        reasons[name] = reason
    good = readable(side)
    for name, content in good.items():
        (folder / name).write_bytes(content())
    return reasons, sorted(good)
