"""Time `cloob embed` and `cloob embed --engine ray` over one folder, in turns: what starting Ray and its workers costs.

python tests/benchmarks/ray_overhead.py WORK [--count 3000] [--rounds 1]

WORK is a folder to be made. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (640, 480)


def make(folder: Path, count: int) -> None:
    """Write JPEG files of random blots."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg", quality=90)


def seconds(work: Path, *words: str) -> float:
    """Run `cloob embed` over the folder; the seconds that it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "cloob_cli", "embed", "images", "--quiet", *words]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    make(options.work / "images", options.count)
    print(f"{options.count} JPEG files of {SIZE[0]} x {SIZE[1]}; load {os.getloadavg()[0]:.1f}")
    for number in range(options.rounds):
        plain = seconds(options.work, "-o", f"{number}.npy")
        on_ray = seconds(options.work, "-o", f"{number}-ray.parquet", "--engine", "ray")
        print(f"plain {plain:.1f} s, one worker on Ray {on_ray:.1f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
