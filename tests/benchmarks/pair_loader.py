"""Measure how many training pairs a second one core prepares from memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/pair_loader.py FOLDER [--pairs 30000] [--image-size 64]

FOLDER is anything that `data.train` takes. The first pass reads and decodes; the later ones are from memory. Processor
time is counted, not the clock, so that other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cloob_cli.data.loader import PairLoader
from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.tokenizer import clip_tokenizer
from cloob_cli.recipe import AugmentSection, DataSection

CHANGES = {
    "none": AugmentSection(),
    "shift": AugmentSection(shift=4),
    "shift and crop": AugmentSection(shift=4, crop_scale=(0.8, 1.0)),
    "shift and colors": AugmentSection(shift=4, color_jitter=0.3, invert=0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2048)
    options = parser.parse_args()

    torch.set_num_threads(1)
    source = open_pairs(DataSection(train=options.folder))
    pairs = np.arange(min(options.pairs, len(source)))
    print(f"{len(pairs)} pairs, {options.image_size} pixels a side, batches of {options.batch_size}: pairs a second")
    print(f"{'augmentation':20}{'first pass':>12}{'from memory':>12}")
    for name, section in CHANGES.items():
        loader = PairLoader(
            source,
            pairs,
            clip_tokenizer(32),
            Preprocess(options.image_size),
            section,
            batch_size=min(options.batch_size, len(pairs)),
            seed=0,
            workers=1,
            in_memory=True,
        )
        rates = [rate(loader, epoch) for epoch in range(3)]
        print(f"{name:20}{rates[0]:12,.0f}{rates[-1]:12,.0f}", flush=True)


def rate(loader: PairLoader, epoch: int) -> float:
    started, pairs = time.process_time(), 0
    for batch in loader.batches(epoch):
        pairs += len(batch.indices)
    return pairs / (time.process_time() - started)


if __name__ == "__main__":
    main()
