"""Measure the cost and the safety of bringing embeddings up to date: `python tests/benchmarks/index_runs.py WORK`.

Three measurements with the bundled model over images that are made here, JPEG files of 640 x 480 pixels (--size), soft
blobs of 19 kB, or with --distinct noise that has the frequencies of photographs, 74 kB:

  kills      `cloob embed` over 3,000 images is killed (kill -9) at 20 random moments, each time followed by the same
             command; whenever it comes to its end, rows, order and numbers must be those of a run that nothing
             disturbed, and it begins anew
  unchanged  the second run over 20,000 images, none of which changed, against the first
  changes    25 images changed, 25 moved, 25 deleted, 25 new, of 20,000: against a run over 100 images

Times are processor time of the command, all its threads together, so that other programs do not count, and wall time.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

COMMAND = [sys.executable, "-m", "cloob_cli", "embed", "-q", "--device", "cpu"]


def save_images(folder: Path, numbers: range, size: tuple[int, int], seed: int = 0, distinct: int = 0) -> None:
    """Save soft blobs, a different one for each number, or `distinct` noisy images, most of them under many names."""
    for number in numbers:
        path = folder / f"{number // 1000:02d}" / f"{number:06d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng((seed, number))
        same = number % max(distinct, 1)
        if not distinct:
            blobs(generator, size).save(path, quality=90)
        elif same == number or seed:
            noisy(generator, size).save(path, quality=90)
        else:  # a link costs `embed` as much as a file of its own: what it reads for the first time it does not compare
            path.hardlink_to(folder / f"{same // 1000:02d}" / f"{same:06d}.jpg")


def blobs(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def noisy(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Noise whose amplitude falls with its frequency, as it does in photographs, with a sensor's noise on it."""
    width, height = size
    levels = 128 + generator.integers(-5, 6, (height, width, 1)).astype(np.float32)
    side = 4
    while side <= width:
        shape = (max(1, side * height // width), side, 3 if side <= 16 else 1)
        coarse = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8).squeeze())
        part = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32).reshape(height, width, -1)
        levels = levels + (part - 128) * (3 / side**0.75)
        side *= 2
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def embed(folder: Path, output: Path) -> tuple[float, float]:
    """Run the command to its end; its processor time and its wall time in seconds."""
    before, started = os.times(), time.monotonic()
    subprocess.run([*COMMAND, folder.name, "-o", output.name], cwd=folder.parent, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.monotonic() - started


def contents(output: Path) -> tuple[np.ndarray, list[str]]:
    """The rows of an output, and the names that they belong to."""
    return np.load(output), pq.read_table(output.with_suffix(".parquet")).column("path").to_pylist()


def measure_kills(work: Path, count: int, size: tuple[int, int], kills: int) -> None:
    folder, whole, killed = work / "few", work / "whole.npy", work / "killed.npy"
    save_images(folder, range(count), size)
    _, seconds = embed(folder, whole)
    expected, order = contents(whole)
    moments, kept, ends = random.Random(0), [], 0
    while len(kept) < kills:
        process = subprocess.Popen([*COMMAND, folder.name, "-o", killed.name], cwd=work, stdout=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            parts = sum(path.stat().st_size for path in work.glob(f".{killed.name}.cloob-parts/*"))
            kept.append(f"{parts / 1e6:.1f}")
            if len(kept) < kills:
                continue
            embed(folder, killed)
        ends += 1
        rows, names = contents(killed)
        if names != order or not np.array_equal(rows, expected):
            raise SystemExit(f"kills: another result after {len(kept)} kills")
        for path in [killed, killed.with_suffix(".parquet")]:
            path.unlink()
    print(f"kills: {count:,} images, {kills} kills; MB kept by then: {', '.join(kept)}")
    print(f"kills: {ends} times at the end, always equal in rows, order and every bit", flush=True)


def measure_updates(work: Path, count: int, size: tuple[int, int], distinct: int) -> None:
    folder, output = work / "many", work / "many.npy"
    save_images(folder, range(count), size, distinct=distinct)
    megabytes = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / 1e6
    print(f"unchanged: files of {1000 * megabytes / count:.0f} kB", flush=True)
    first = embed(folder, output)
    print(f"unchanged: first run {first[0]:.1f} s ({first[1]:.1f} s wall)", flush=True)
    repeated = [embed(folder, output) for _ in range(3)]
    second = min(used for used, _ in repeated), min(wall for _, wall in repeated)
    print(f"unchanged: {count:,} images: first run {first[0]:.1f} s ({first[1]:.1f} s wall)", end=", ")
    print(f"second {second[0]:.2f} s ({second[1]:.2f} s wall): {first[0] / second[0]:.0f} times faster", end=" ")
    print(f"({first[1] / second[1]:.0f} by wall time)", flush=True)
    files = sorted(folder.rglob("*.jpg"))
    chosen = random.Random(1).sample(files, 75)
    for path in chosen[:25]:
        path.unlink()
        number = int(path.stem)
        save_images(folder, range(number, number + 1), size, 1, distinct)
    for path in chosen[25:50]:
        path.rename(path.with_name(f"moved-{path.name}"))
    for path in chosen[50:]:
        path.unlink()
    save_images(folder, range(count, count + 25), size, 3, distinct)
    changed = embed(folder, output)
    again = embed(folder, output)
    save_images(work / "hundred", range(100), size, 2, distinct)
    hundred = embed(work / "hundred", work / "hundred.npy")
    print(f"changes: 100 files of {count:,}: {changed[0]:.2f} s; 100 images alone {hundred[0]:.2f} s, of which")
    print(f"         a run with nothing to do takes {again[0]:.2f} s over {count:,} images", flush=True)
    shutil.copytree(folder, work / "anew" / "many", copy_function=os.link)
    embed(work / "anew" / "many", work / "anew" / "many.npy")
    (rows, names), (expected, order) = contents(output), contents(work / "anew" / "many.npy")
    print(f"changes: equal to a run from nothing: {names == order and np.array_equal(rows, expected)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="an empty folder, or one that does not exist")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kill-images", type=int, default=3_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--distinct", type=int, default=0, help="noisy images, hard-linked until there are --images")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    chosen = parser.parse_args()
    size = (chosen.size[0], chosen.size[1])
    work = chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        parser.error(f"{work} is not empty")
    if chosen.kills:
        measure_kills(work, chosen.kill_images, size, chosen.kills)
    measure_updates(work, chosen.images, size, chosen.distinct)


if __name__ == "__main__":
    main()
