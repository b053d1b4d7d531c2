"""Measure how well `cloob dedupe` tells copies from other images: `python scripts/measure_duplicates.py DIR`.

DIR holds different images. Of each, copies are made as people make them: scaled to a half, saved as a JPEG of low
quality, brightened, cropped by a few per cent, turned a little, mirrored. For several limits the table has the
fraction of the copies of each kind that are found, and the fraction of the images of DIR that are taken for a copy of
another one. `--rows N` instead measures the time and memory of finding near rows among N random ones of 256 numbers,
each hundredth of which is there twice (POSIX only).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

import cloob_cli
from cloob_cli.inference.duplicates.components import connected_rows
from cloob_cli.inference.duplicates.groups import Limits
from cloob_cli.inference.duplicates.perceptual_hash import perceptual_hashes
from cloob_cli.inference.embed import embed_images
from cloob_cli.inference.find_images import collect_images

LIMITS = [(cosine, bits) for bits in (4, 8, 12) for cosine in (0.9, 0.93, 0.95)]


def _as_jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=30)
    return Image.open(io.BytesIO(stream.getvalue()))


def _cropped(image: Image.Image, fraction: float) -> Image.Image:
    edge = round(fraction * min(image.size))
    return ImageOps.crop(image, edge)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half size": lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2))),
    "JPEG, quality 30": _as_jpeg,
    "brighter by 20 %": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "2 % off each edge": lambda image: _cropped(image, 0.02),
    "6 % off each edge": lambda image: _cropped(image, 0.06),
    "turned by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0))),
    "mirrored": ImageOps.mirror,
}


def compare_rows(count: int) -> None:
    """Print what it costs to find the near ones of `count` rows in a file."""
    import resource

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = np.lib.format.open_memmap(Path(folder) / "emb.npy", "w+", np.float32, (count, 256))
        for start in range(0, count, 10_000):
            part = random.normal(size=(min(10_000, count - start), 256))
            rows[start : start + 10_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
        twice = count // 100
        rows[count - twice :] = rows[:twice]
        before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        found = sum(1 for _ in connected_rows(rows, np.arange(count), Limits().cosine))
        seconds, after = time.process_time() - since, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        print(f"{count:,} rows, of which {twice:,} are there twice: {found:,} sets, {seconds:.0f} s of CPU time,")
        print(f"{(after - before) * unit / 2**20:.0f} MiB more than the {before * unit / 2**20:.0f} MiB before")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, metavar="N")
    parser.add_argument("--limit", type=int, default=400, help="at most so many images, evenly spaced (400)")
    parser.add_argument("--model", default=None)
    chosen = parser.parse_args()
    if chosen.rows:
        compare_rows(chosen.rows)
        return 0
    if chosen.folder is None:
        parser.error("DIR or --rows is missing")
    paths = [path for path in collect_images([chosen.folder]).items if isinstance(path, Path)]
    paths = [paths[i * len(paths) // chosen.limit] for i in range(chosen.limit)] if len(paths) > chosen.limit else paths
    model = cloob_cli.load(chosen.model, device="cpu")
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / str(place) for place, kind in enumerate(["as it is", *COPIES])}
        for folder in folders.values():
            folder.mkdir()
        for place, path in enumerate(paths):
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)
                rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(
                    "RGB"
                )
            rgb.thumbnail((1024, 1024))
            for kind, folder in folders.items():
                (rgb if kind == "as it is" else COPIES[kind](rgb)).save(folder / f"{place:06d}.png")
        found = {}
        for kind, folder in folders.items():
            files = sorted(folder.iterdir())
            rows = torch.cat([batch.embeddings for batch in embed_images(model, files)]).float().numpy()
            hashes = np.array(perceptual_hashes(files), dtype=np.uint64)
            found[kind] = rows, hashes
    rows, hashes = found.pop("as it is")
    cosines = rows @ rows.T
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    np.fill_diagonal(cosines, -1)
    print(f"{len(paths)} images of {chosen.folder}, {model.config.name}")
    print(f"| least cosine | most bits | {' | '.join(COPIES)} | other images taken for a copy |")
    print("|---" * (len(COPIES) + 3) + "|")
    for least, most in LIMITS:
        shares = []
        for copied, values in found.values():
            near = (np.sum(rows * copied, axis=1) >= least) & (np.bitwise_count(hashes ^ values) <= most)
            shares.append(f"{100 * near.mean():.1f} %")
        wrong = ((cosines >= least) & (bits <= most)).any(axis=1).mean()
        print(f"| {least} | {most} | {' | '.join(shares)} | {100 * wrong:.1f} % |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
