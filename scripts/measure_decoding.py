"""Measure how far embeddings move where large images are made smaller before they are resized (docs/inference.md).

python scripts/measure_decoding.py [--model NAME|ARCHITECTURE]... FOLDER|IMAGE...

Prints a Markdown table for each model: for each number of times its input's side that both sides of an image must
keep, how many images became smaller, and the cosines of their embeddings with those of the full decode. JPEGs are made
smaller by their decoder, all images by averaging, and in the end by both as the commands do it. An architecture (RN50
and so on) stands for a model with random weights. Its embeddings of different images, whose mean cosine is told, may
be nearer than a trained model's; then pixels say more than cosines.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import cloob_cli
from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.data import scaled_decoding
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.inference.encoding import encode_images, prepare_for_inference
from cloob_cli.inference.find_images import collect_images

OURS = (scaled_decoding.JPEG_RESERVE, scaled_decoding.AVERAGE_RESERVE)
NEVER = 10**6
# What a JPEG's decoder must leave, and averaging: each alone, then both.
RULES = [*((times, NEVER) for times in (1, 2, 3, 4)), *((NEVER, times) for times in (2, 3, 4, 5)), OURS]
LIMIT = 0.999


@dataclass
class Moved:
    """The images that a rule makes smaller, against their exact crops."""

    cosines: list[float] = field(default_factory=list)
    largest: int = 0  # difference of a value of the crop, of 255
    means: list[float] = field(default_factory=list)


def crop(path: Path, preprocess: Preprocess, jpeg: int, average: int) -> np.ndarray:
    with Image.open(path) as image:
        stored = image.size
        if image.format in {"JPEG", "MPO"} and jpeg < NEVER:
            image.draft(None, (jpeg * preprocess.image_size,) * 2)
        scaled_decoding.AVERAGE_RESERVE = average
        return preprocess.scaled_crop(image, stored)


def opened(name: str) -> CloobModel:
    if name in ARCHITECTURES:
        model = build(ModelConfig.model_validate(ARCHITECTURES[name]), seed=0).eval().requires_grad_(False)
    else:
        model = cloob_cli.load(name, device="cpu", dtype="fp32")
    return prepare_for_inference(model)


def measure(model: CloobModel, images: list[Path]) -> Iterator[str]:
    """The lines of the table, and one below it."""
    preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)
    moved = {rule: Moved() for rule in RULES}
    rows = []
    for path in images:
        exact = crop(path, preprocess, NEVER, NEVER)
        crops = [crop(path, preprocess, *rule) for rule in RULES]
        different = {pixels.tobytes(): pixels for pixels in [exact, *crops]}
        embeddings = encode_images(model, torch.from_numpy(np.stack(list(different.values()))))
        embedding_of = dict(zip(different, embeddings, strict=True))
        rows.append(embeddings[0])
        for rule, pixels in zip(RULES, crops, strict=True):
            difference = np.abs(pixels.astype(int) - exact.astype(int))
            if difference.any():
                moved[rule].cosines.append(float(embedding_of[pixels.tobytes()] @ embeddings[0]))
                moved[rule].largest = max(moved[rule].largest, int(difference.max()))
                moved[rule].means.append(float(difference.mean()))
    for (jpeg, average), found in moved.items():
        rule = " and ".join(
            f"{how}, {times} times" for how, times in (("JPEG decoder", jpeg), ("averaged", average)) if times < NEVER
        )
        if not found.cosines:
            yield f"| {rule} | 0 | | | | |"
            continue
        below = sum(cosine < LIMIT for cosine in found.cosines)
        yield (
            f"| {rule} | {len(found.cosines)} | {min(found.cosines):.5f} | {np.mean(found.cosines):.5f} | {below} | "
            f"{np.mean(found.means):.2f}, {found.largest} |"
        )
    count = len(rows)
    between = (torch.stack(rows).sum(0).square().sum() - count) / max(1, count * (count - 1))
    yield f"\n{count} images; mean cosine between the embeddings of different ones: {between:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append")
    parser.add_argument("images", nargs="+", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = [path for path in collect_images(arguments.images).items if isinstance(path, Path)]
    for name in arguments.model or ["cloob-xs-pictograms"]:
        print(f"\n{name}\n")
        print(f"| kept | made smaller | least cosine | mean | below {LIMIT} | pixels differ by, mean and at most |")
        print("|---|---|---|---|---|---|")
        for line in measure(opened(name), images):
            print(line, flush=True)


if __name__ == "__main__":
    main()
