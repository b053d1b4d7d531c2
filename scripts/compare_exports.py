"""Measure how far an exported model is from its source in the program that it was exported for.

    python scripts/compare_exports.py MODEL transformers
    python scripts/compare_exports.py MODEL open_clip

Prints the largest difference of a pixel (after normalization) and of an embedding (of unit norm) for ordinary, tiny and
thin images, as that program's own preprocessing prepares them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cloob_cli.checkpoint.folder import open_model
from cloob_cli.export import export_model
from cloob_cli.registry.resolve import find_model

Encoder = Callable[[Image.Image], tuple[torch.Tensor, torch.Tensor]]

SIZES = {
    "ordinary": [(640, 480), (480, 640), (1001, 607), (1024, 768), (333, 777), (224, 224), (300, 299)],
    "tiny": [(1, 1), (2, 3), (3, 2), (7, 5), (16, 16), (20, 15), (31, 33)],
    "thin": [(1, 40), (40, 1), (900, 40)],
}


def images(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Smooth ones, as photographs are, and noise, where every pixel counts."""
    random = np.random.default_rng(0)
    made = []
    for width, height in sizes:
        coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        made.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
        made.append(Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)))
    return made


def in_open_clip(folder: Path) -> Encoder:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()

    def encode(image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = preprocess(image)
        return pixels, model.encode_image(pixels[None], normalize=True)[0]

    return encode


def in_transformers(folder: Path) -> Encoder:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)

    def encode(image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = processor(text=["a"], images=[image], return_tensors="pt")
        return inputs["pixel_values"][0], model(**inputs).image_embeds[0]

    return encode


@torch.no_grad()
def main(name: str, program: str) -> None:
    source = find_model(name)
    with tempfile.TemporaryDirectory() as temporary:
        export_model(source, program, Path(temporary) / "out")
        theirs = {"open_clip": in_open_clip, "transformers": in_transformers}[program](Path(temporary) / "out")
    ours = open_model(source, "cpu", torch.float32)
    assert ours.preprocess is not None
    for kind, sizes in SIZES.items():
        pixels = embeddings = 0.0
        for image in images(sizes):
            own = ours.preprocess(image)
            found_pixels, found = theirs(image)
            pixels = max(pixels, float((found_pixels - own).abs().max()))
            embeddings = max(embeddings, float((found - ours.encode_image(own[None])[0]).abs().max()))
        print(f"{kind}\tpixels {pixels:.2g}\tembeddings {embeddings:.2g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
