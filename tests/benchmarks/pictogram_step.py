"""Images a second of a training step of pictograms, by what makes a step cheaper or richer.

    python tests/benchmarks/pictogram_step.py FOLDER [--threads 1] [--batch-size 256] [--steps 4] [--only NAME...]

FOLDER is anything that `data.train` takes. All rows are measured in turn in one run, several times around; the median
is shown, and its ratio to the first row. On a CPU it is processor time that is counted, that of the loader's threads
included, so that other programs on the machine disturb less. The recipe is recipes/pictograms-vit-xs.toml with the
changes that the row's name says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cloob_cli.recipe import load_recipe
from cloob_cli.training.build_run import build_run, built
from cloob_cli.training.interrupt import StopRequest, stop_on_signals
from cloob_cli.training.loop import batches

RECIPE = Path(__file__).parents[2] / "recipes" / "pictograms-vit-xs.toml"
RESNET = ["model.vision={kind='resnet', image_size=64, width=32, layers=[1, 2, 2, 1], heads=8}"]
ROWS: dict[str, list[str]] = {
    "as the recipe": [],
    "all of the text context": [],  # as it is without cutting token rows
    "2 captions an image": ["train.captions_per_image=2"],
    "4 captions an image": ["train.captions_per_image=4"],
    "patch dropout 0.5": ["train.patch_dropout=0.5"],
    "convolutional stem": ['model.vision.stem="conv"'],
    "convolutional stem, a block less": ['model.vision.stem="conv"', "model.vision.layers=5"],
    "Muon": ['optimizer.name="muon"'],
    "images of 32 pixels": ["train.image_sizes=[[0.0, 32], [0.9, 48]]"],
    "ResNet at 64 pixels": RESNET,
    "ResNet, images of 32 pixels": [*RESNET, "train.image_sizes=[[0.0, 32], [0.9, 64]]"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="a row and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="rows by name; the first is what ratios are to")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, stop_on_signals() as stop:
        rows = {name: _steps(Path(folder), name, options, stop) for name in options.only}
        rates: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.rounds):
            for name, steps in rows.items():
                rates[name].append(_rate(steps, options))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = next(iter(medians.values()))
    print(f"batch {options.batch_size}, {options.threads} threads, {options.precision}, {options.device}")
    for name, value in medians.items():
        print(f"{name:40}{value:9.0f} images/s{value / first:8.2f}", flush=True)


def _steps(folder: Path, name: str, options: argparse.Namespace, stop: StopRequest) -> Iterator[None]:
    """A run of its own that does a step whenever it is asked to."""
    changes = [f"data.train={options.folder}", "data.workers=1", f"train.batch_size={options.batch_size}"]
    changes += [f'train.precision="{options.precision}"', "train.steps=100000", *ROWS[name]]
    recipe = load_recipe(RECIPE, changes)
    run = built(build_run(recipe, folder / name.replace(" ", "-"), device=options.device, stop=stop))
    assert run is not None
    if name == "all of the text context":
        run.loader._text, run.model.cuts_tokens = None, False
    for batch in batches(run):
        run.train_step(batch, run.step)
        run.step += 1
        if options.device != "cpu":
            torch.cuda.synchronize()
        yield


def _rate(steps: Iterator[None], options: argparse.Namespace) -> float:
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    next(steps)  # decoding of the first images, choice of kernels
    started = clock()
    for _ in range(options.steps):
        next(steps)
    return options.steps * options.batch_size / (clock() - started)


if __name__ == "__main__":
    main()
