"""Time and memory of recall@k on large sets of random embeddings: `cloob eval`'s own function, without a model.

    python tests/benchmarks/retrieval_recall.py --images 100000 --captions 5

`--found X` moves that fraction of the captions close to their images. A query that is lost is dropped early and one
that is found is compared with every key, so the more are found the longer it takes; a random set has next to none.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch

from cloob_cli.evaluation.retrieval import scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=5, help="of each image")
    parser.add_argument("--width", type=int, default=256, help="of an embedding")
    parser.add_argument("--found", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.images, arguments.width, generator=generator)
    images /= images.norm(dim=1, keepdim=True)
    owners = torch.arange(arguments.images).repeat_interleave(arguments.captions)
    texts = torch.randn(len(owners), arguments.width, generator=generator)
    texts /= texts.norm(dim=1, keepdim=True)
    close = int(arguments.found * len(texts))
    texts[:close] = 0.5 * texts[:close] + images[owners[:close]]
    texts /= texts.norm(dim=1, keepdim=True)
    start, begun = time.monotonic(), time.process_time()
    metrics, _, ties = scores(images, texts, owners, 0)
    seconds, processor = time.monotonic() - start, time.process_time() - begun
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    facts = {
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "peak_gb": round(peak / 1e9, 2),
        "ties": ties,
    }
    print(json.dumps(vars(arguments) | facts | {name: round(value, 5) for name, value in metrics.items()}, indent=2))


if __name__ == "__main__":
    main()
