"""Measure reading and encoding images on a CPU: `python tests/benchmarks/inference.py [--model NAME] [IMAGE...]`.

Prints CPU time an image, which a busy machine distorts less than the clock, with ratios: JPEGs decoded in full and at
reduced size (`--fast-jpeg`), and an RN50 as it is stored, made ready for inference, and in bfloat16. Then the cosines
between embeddings by both ways of decoding, of the named images or of enlarged `examples/pictures`.
"""

from __future__ import annotations

import argparse
import copy
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import cloob_cli
from cloob_cli.core.config import ARCHITECTURES, ModelConfig
from cloob_cli.core.model import build
from cloob_cli.data.images import Preprocess, open_image
from cloob_cli.inference.encoding import encode_images, prepare_for_inference

BATCH = 8


def cpu_seconds(work: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """The least CPU time of each, taken in turns so that a disturbance meets all of them."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, run in work.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def photo(width: int, height: int) -> bytes:
    """A JPEG with about the detail of a photograph."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (smooth + generator.integers(-6, 7, smooth.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decoding() -> None:
    for width, height in ((4000, 3000), (1600, 1200)):
        data = photo(width, height)
        for size in (224, 64):
            crop = Preprocess(size).crop
            times = cpu_seconds(
                {
                    "in full": lambda data=data, crop=crop: crop(open_image(data)),
                    "fast": lambda data=data, crop=crop, size=size: crop(open_image(data, 2 * size)),
                }
            )
            ratio = times["in full"] / times["fast"]
            shown = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in times.items())
            print(f"JPEG {width}x{height} to {size}: {shown}, {ratio:.1f} times")


def enlarged(image: Path, folder: Path) -> Path:
    """The image as a JPEG of 960x960: a stand-in where no photographs are at hand."""
    path = folder / f"{image.stem}.jpg"
    open_image(image).resize((960, 960), Image.Resampling.LANCZOS).save(path, quality=90)
    return path


def encoding() -> None:
    plain = build(ModelConfig.model_validate(ARCHITECTURES["RN50-quickgelu"]), seed=0).eval().requires_grad_(False)
    prepared = prepare_for_inference(copy.deepcopy(plain))
    models = {"RN50 as stored": plain, "prepared": prepared, "prepared, bfloat16": copy.deepcopy(prepared).bfloat16()}
    pixels = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8)
    times = cpu_seconds({name: lambda m=model: encode_images(m, pixels) for name, model in models.items()})
    reference = encode_images(plain, pixels)
    for name, seconds in times.items():
        cosine = (encode_images(models[name], pixels) * reference).sum(1).min()
        ratio = times["RN50 as stored"] / seconds
        print(f"{name}: {1000 * seconds / BATCH:.0f} ms an image, {ratio:.1f} times, least cosine {cosine:.7f}")


def fast_jpeg_cosines(model: str | None, images: list[Path]) -> None:
    opened = cloob_cli.load(model, device="cpu")  # type: ignore[arg-type]
    preprocess = Preprocess(opened.config.vision.image_size, opened.config.preprocess)
    cosines = []
    for image in images:
        hints = (None, 2 * preprocess.image_size)
        crops = [preprocess.crop(open_image(image, hint)) for hint in hints]
        exact, fast = encode_images(opened, torch.from_numpy(np.stack(crops)))
        cosines.append(float(exact @ fast))
    print(f"fast JPEG, {len(cosines)} images: least cosine {min(cosines):.5f}, mean {np.mean(cosines):.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("images", nargs="*", type=Path)
    arguments = parser.parse_args()
    decoding()
    encoding()
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(__file__).parents[2] / "examples" / "pictures"
        images = arguments.images or [enlarged(path, Path(folder)) for path in sorted(examples.glob("*.png"))]
        fast_jpeg_cosines(arguments.model, images)


if __name__ == "__main__":
    main()
