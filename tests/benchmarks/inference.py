"""Measure reading and encoding images on a CPU: `python tests/benchmarks/inference.py [--model NAME] [PHOTOGRAPH...]`.

First, as Markdown tables, `cloob embed`'s way against clip-retrieval's with the same model: Pillow decodes in full and
resizes in a data loader's worker, then the model gets batches. Files of 640x480 and 4000x3000 pixels are made from the
photographs, or of noise where none are named. Both ways are run in turns over the same files with one thread or worker
that reads and one that computes. Then an RN50 as it is stored, made ready for inference, and in bfloat16.

Processor time disturbs a busy machine less than the clock does.
"""

from __future__ import annotations

import argparse
import copy
import io
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import cloob_cli
from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.inference.embed import embed_images
from cloob_cli.inference.encoding import encode_images, prepare_for_inference

BATCH = 8  # of the RN50
SIZES = {"640x480": (640, 480), "4000x3000": (4000, 3000)}
FORMATS: dict[str, dict[str, int]] = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 6}, "WEBP": {"quality": 85}}
NOISE = 2.0  # levels: a sensor's, without which an enlarged photograph would be too easy to decode
ROUNDS = 3


def cpu_seconds(work: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """The least CPU time of each, taken in turns so that a disturbance meets all of them."""
    return {name: cpu for name, (cpu, _) in seconds(work, rounds).items()}


def seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """The least CPU time, of processes that it started too, and the least time by the clock of each, taken in turns."""
    best = dict.fromkeys(work, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, run in work.items():
            start, cpu = time.perf_counter(), processor_seconds()
            run()
            took = processor_seconds() - cpu, time.perf_counter() - start
            best[name] = (min(best[name][0], took[0]), min(best[name][1], took[1]))
    return best


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def photo(width: int, height: int) -> bytes:
    """A JPEG with about the detail of a photograph."""
    buffer = io.BytesIO()
    synthetic(width, height).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def synthetic(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.integers(-6, 7, smooth.shape, dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def photograph(path: Path, size: tuple[int, int]) -> Image.Image:
    """A photograph at another size, its middle, with a sensor's noise."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    scale = min(one / other for one, other in zip(image.size, size, strict=True))
    left, top = ((one - scale * other) / 2 for one, other in zip(image.size, size, strict=True))
    box = (left, top, left + scale * size[0], top + scale * size[1])
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box)).astype(np.float32)
    pixels += np.random.default_rng(0).normal(0, NOISE, pixels.shape).astype(np.float32)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


class Files(Dataset[torch.Tensor]):
    """Files as clip-retrieval reads them: CLIP's preprocessing of `Image.open`, without torchvision."""

    def __init__(self, paths: Sequence[Path], model: CloobModel) -> None:
        self.paths, self.size, self.config = paths, model.config.vision.image_size, model.config.preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            width, height = image.size
            scale = self.size / min(width, height)
            width, height = max(self.size, int(scale * width)), max(self.size, int(scale * height))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.crop((left, top, left + self.size, top + self.size)).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.mean, self.config.std))
        return (pixels - mean) / std


def clip_retrieval(model: CloobModel, paths: Sequence[Path], workers: int) -> torch.Tensor:
    batches: Iterator[torch.Tensor] = iter(DataLoader(Files(paths, model), batch_size=64, num_workers=workers))
    with torch.inference_mode():
        return torch.cat([model.encode_image(batch) for batch in batches])


def ours(model: CloobModel, paths: Sequence[Path], workers: int) -> torch.Tensor:
    batches = embed_images(model, paths, batch_size=64, workers=workers)
    return torch.cat([batch.embeddings for batch in batches if batch.embeddings is not None])


def opened(name: str) -> CloobModel:
    """A model, or one with an architecture's name and random weights."""
    if name in ARCHITECTURES:
        return build(ModelConfig.model_validate(ARCHITECTURES[name]), seed=0).eval().requires_grad_(False)
    return cloob_cli.load(name, device="cpu", dtype="fp32")


def reading(name: str, photographs: Sequence[Path], count: int, workers: int) -> None:
    """The table of `cloob embed`'s way against clip-retrieval's."""
    plain, prepared = (opened(name) for _ in range(2))
    prepare_for_inference(prepared)
    print("| file | size | clip-retrieval's way | `cloob embed` | | by the clock | least cosine |")
    print("|---|---|---|---|---|---|---|")
    for shown, size in SIZES.items():
        some = list(islice(cycle(photographs), count))
        images = [photograph(path, size) for path in some] or [synthetic(*size)] * count
        for form, options in FORMATS.items():
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder) / f"{number:03}.{form.lower()}" for number in range(count)]
                for path, image in zip(paths, images, strict=True):
                    image.save(path, form, **options)
                megabytes = sum(path.stat().st_size for path in paths) / count / 1e6
                times = seconds(
                    {
                        "theirs": lambda paths=paths: clip_retrieval(plain, paths, workers),
                        "ours": lambda paths=paths: ours(prepared, paths, workers),
                    },
                    ROUNDS,
                )
                cosine = (clip_retrieval(plain, paths, 0) * ours(prepared, paths, 0)).sum(1).min()
            (their_cpu, their_clock), (our_cpu, our_clock) = times["theirs"], times["ours"]
            print(
                f"| {form} {shown} | {megabytes:.2g} MB | {1000 * their_cpu / count:.1f} ms | "
                f"{1000 * our_cpu / count:.1f} ms | {their_cpu / our_cpu:.1f} times | {count / their_clock:.3g} and "
                f"{count / our_clock:.3g} a second, {their_clock / our_clock:.1f} times | {cosine:.5f} |",
                flush=True,
            )


def encoding() -> None:
    plain = opened("RN50-quickgelu")
    prepared = prepare_for_inference(copy.deepcopy(plain))
    models = {"RN50 as stored": plain, "prepared": prepared, "prepared, bfloat16": copy.deepcopy(prepared).bfloat16()}
    pixels = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8)
    times = cpu_seconds({name: lambda m=model: encode_images(m, pixels) for name, model in models.items()})
    reference = encode_images(plain, pixels)
    for name, took in times.items():
        cosine = (encode_images(models[name], pixels) * reference).sum(1).min()
        ratio = times["RN50 as stored"] / took
        print(f"{name}: {1000 * took / BATCH:.0f} ms an image, {ratio:.1f} times, least cosine {cosine:.7f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cloob-xs-pictograms")
    parser.add_argument("--count", type=int, default=8, help="files of each kind")
    parser.add_argument("--workers", type=int, default=1, help="threads, or processes, that read")
    parser.add_argument("--only", choices=["reading", "encoding"])
    parser.add_argument("photographs", nargs="*", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only != "encoding":
        reading(arguments.model, arguments.photographs, arguments.count, arguments.workers)
    if arguments.only != "reading":
        encoding()


if __name__ == "__main__":
    main()
