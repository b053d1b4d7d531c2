"""Small sets of training pairs in every form, made by code."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def image(number: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    """An image that is told from the others by its contents."""
    noise = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(number: int, size: tuple[int, int] = (20, 20), form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    image(number, size).save(stream, form, **options)
    return stream.getvalue()


class FatalSource:
    """Pairs whose reading ends the process that reads, as the kernel does when memory runs out."""

    blocks = None

    def __len__(self) -> int:
        return 20

    def name(self, index: int) -> str:
        return str(index)

    def captions(self, index: int) -> list[str]:
        return captions_of(index)

    def image(self, index: int, size_hint: int | None = None) -> Image.Image:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def captions_of(number: int) -> list[str]:
    """One to three captions; those of different pairs differ, except that every fifth says the same."""
    if number % 5 == 4:
        return ["the same"]
    return [f"image number {number}", f"a drawing of {number}", f"{number} in color"][: 1 + number % 3]


def write_parquet(path: Path, numbers: range, *, row_group: int = 10, as_struct: bool = False, **spoilt: bytes) -> Path:
    """Columns `image` and `captions`; `spoilt` replaces the bytes of pair N by those of the argument `pairN`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images: list[object] = [spoilt.get(f"pair{number}", encoded(number)) for number in numbers]
    if as_struct:
        images = [{"bytes": data, "path": None} for data in images]
    table = pa.table({"image": images, "captions": [captions_of(number) for number in numbers]})
    pq.write_table(table, path, row_group_size=row_group)
    return path


def write_folder(folder: Path, numbers: range) -> Path:
    """Images with NAME.txt beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:03}.png").write_bytes(encoded(number))
        (folder / f"{number:03}.txt").write_text("\n".join(captions_of(number)) + "\n", encoding="utf-8")
    return folder


def write_table(path: Path, numbers: range, separator: str, image: str, caption: str) -> Path:
    """A table of paths with one caption each, and a column that is of no use."""
    write_folder(path.parent / "images", numbers)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow(["id", image, caption])
        writer.writerows([n, f"images/{n:03}.png", captions_of(n)[0]] for n in numbers)
    return path


def write_tar(path: Path, numbers: range, *, captions_in: str = "txt") -> Path:
    """img2dataset's layout: KEY.jpg, KEY.txt and KEY.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            members = {"jpg": encoded(number, form="JPEG"), "json": _json(number, captions_in)}
            if captions_in == "txt":
                members["txt"] = captions_of(number)[0].encode()
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:09}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def _json(number: int, captions_in: str) -> bytes:
    fields: dict[str, object] = {"url": f"http://localhost/{number}", "status": "success"}
    if captions_in != "txt":
        fields[captions_in] = captions_of(number)[0]
    return json.dumps(fields).encode()
