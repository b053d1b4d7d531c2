"""Compare training recipes for the bundled model at equal processor time, on validation data only.

    python scripts/pictogram_trials.py prepare DATA WORK        # once: DATA is the folder of the parquet files
    python scripts/pictogram_trials.py run WORK NAME --seconds 300
    python scripts/pictogram_trials.py table WORK                 # Markdown, best first

`prepare` takes six whole icon sets out of the training data: their drawings are never trained on, and the names of
what they show are the classes of four zero-shot tests (emoji, flags, line icons, color icons). That is what the model
is for, drawings in a style that it has not seen. The evaluation sets of the model card are not read by any of this.

`run` trains one candidate of pictogram_trials.toml. It first measures the processor time of a step, then trains for as
many steps as fit into the time asked for. One thread each, so that two candidates can run side by side.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "pictograms.toml"
CANDIDATES = Path(__file__).with_suffix(".toml")
# Drawings of these sets are for validation: by test, the first part of the column `source`.
HELD_OUT = {
    "emoji": ("noto-v1", "fxemoji"),
    "flags": ("cif",),
    "line_icons": ("lucide",),
    "color_icons": ("streamline-cyber-color", "fluent-color"),
}
TEMPLATES = ("{c}", "an icon of {c}", "a picture of {c}", "{c} icon")
_SHARD_ROWS = 20_000
_CALIBRATION_STEPS = 24
_WARM_UP_STEPS = 8  # the first ones also choose kernels and start threads


@dataclass(frozen=True)
class Measured:
    """Processor time in seconds of all steps and of one step after the first few, and the last validation's scores."""

    seconds: float
    seconds_per_step: float
    batch_size: int
    loss: float
    metrics: dict[str, float]


def prepare(data: Path, work: Path) -> None:
    """Write the training pairs without the held-out sets, and the held-out sets as classification data sets."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    test_of = {source: test for test, sources in HELD_OUT.items() for source in sources}
    held_out: dict[str, list[tuple[bytes, str]]] = defaultdict(list)
    kept = []
    for file in sorted(data.glob("*.parquet")):
        table = pq.read_table(file)
        tests = [test_of.get(source.split("/")[0]) for source in table["source"].to_pylist()]
        kept.append(table.filter(pa.array([test is None for test in tests])))
        for row, test in zip(
            table.filter(pa.array([test is not None for test in tests])).to_pylist(), filter(None, tests), strict=True
        ):
            if (test == "flags") == (row["kind"] == "flag"):
                held_out[test].append((row["image"], row["captions"][0]))
    folder = work / "train"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = pa.concat_tables(kept)
    for number, start in enumerate(range(0, len(pairs), _SHARD_ROWS)):
        pq.write_table(
            pairs.slice(start, _SHARD_ROWS),
            folder / f"train-{number:05}.parquet",
            row_group_size=1000,
            compression="zstd",
        )
    print(f"{len(pairs):,} training pairs in {folder}")
    for test, rows in held_out.items():
        _write_classification_set(work / "validation" / test, rows)
        print(f"{len(rows):,} images of {len({name for _, name in rows}):,} classes in {work / 'validation' / test}")


def _write_classification_set(folder: Path, rows: list[tuple[bytes, str]]) -> None:
    """CLIP_benchmark's webdataset layout: test/0.tar, test/nshards.txt, classnames.txt and the templates."""
    names = sorted({name for _, name in rows})
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n", encoding="utf-8")
    (folder / "dataset_type.txt").write_text("classification\n", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text("1\n", encoding="utf-8")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (image, name) in enumerate(rows):
            for suffix, content in (("webp", image), ("cls", str(names.index(name)).encode())):
                member = tarfile.TarInfo(f"s{number:07}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def run(work: Path, name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Train the candidate `name` for `seconds` of processor time; append its row to WORK/results.jsonl."""
    settings = tomllib.loads(CANDIDATES.read_text(encoding="utf-8"))
    candidate = settings["candidates"][name]
    overrides = [
        f"seed={seed}",
        f"data.train={work / 'train'}",
        *settings["base"],
        *candidate["set"],
        f"validation.zero_shot={[str(work / 'validation' / test) for test in HELD_OUT]}",
        "data.workers=1",
    ]
    measured = _train(work / "runs" / f"{name}-calibration", [*overrides, f"train.steps={_CALIBRATION_STEPS}"])
    steps = max(1, round(seconds / measured.seconds_per_step))
    measured = _train(work / "runs" / f"{name}-{seed}", [*overrides, f"train.steps={steps}"])
    tops = {test: measured.metrics[f"zero_shot/{test}/top1"] for test in HELD_OUT}
    row = {
        "name": name,
        "about": candidate["about"],
        "seed": seed,
        "steps": steps,
        "images": steps * measured.batch_size,
        "processor_seconds": round(measured.seconds),
        "loss": measured.loss,
        "mean_top1": fmean(tops.values()),
        **{f"top1_{test}": value for test, value in tops.items()},
        "recall_10": measured.metrics["retrieval/image_to_text/recall_10"],
    }
    with open(work / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def _train(folder: Path, overrides: list[str]) -> Measured:
    """Train in `folder` and measure the processor time of the steps: not of opening the data, nor of validation."""
    from cloob_cli.recipe import load_recipe
    from cloob_cli.training.events import Finished, Started, StepDone
    from cloob_cli.training.loop import train_recipe

    shutil.rmtree(folder, ignore_errors=True)
    recipe = load_recipe(RECIPE, [*overrides, "train.log_every=1", "train.checkpoint_every=1000000"])
    start = warm = stop = time.process_time()
    steps, loss, metrics = 0, 0.0, {}
    for event in train_recipe(recipe, folder, device="cpu"):
        if isinstance(event, Started):
            start = time.process_time()
        elif isinstance(event, StepDone):
            stop, steps, loss = time.process_time(), event.step, event.loss
            if steps == _WARM_UP_STEPS:
                warm = stop
            if steps % 50 == 0:
                print(f"{folder.name}: step {steps}, loss {loss:.3f}, {stop - start:.0f} s", file=sys.stderr)
        elif isinstance(event, Finished):
            metrics = event.metrics
    return Measured(stop - start, (stop - warm) / (steps - _WARM_UP_STEPS), recipe.train.batch_size, loss, metrics)


def table(work: Path) -> Iterator[str]:
    """The results so far as Markdown, best mean top-1 first."""
    rows = [json.loads(line) for line in (work / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    tests = " | ".join(test.replace("_", " ") for test in HELD_OUT)
    yield f"| candidate | what | processor s | images seen | mean top-1 | {tests} | R@10 |"
    yield "|---|---|---" + "|---" * (len(HELD_OUT) + 3) + "|"
    for row in sorted(rows, key=lambda row: -row["mean_top1"]):
        tops = " | ".join(f"{100 * row[f'top1_{test}']:.1f}" for test in HELD_OUT)
        yield (
            f"| {row['name']} | {row['about']} | {row['processor_seconds']} | {row['images']:,} "
            f"| {100 * row['mean_top1']:.1f} | {tops} | {100 * row['recall_10']:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("data", type=Path)
    running = commands.add_parser("run")
    tabling = commands.add_parser("table")
    for command in (preparing, running, tabling):
        command.add_argument("work", type=Path)
    running.add_argument("names", nargs="+")
    running.add_argument("--seconds", type=float, default=300)
    running.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.command == "prepare":
        prepare(arguments.data.resolve(), work)
    elif arguments.command == "table":
        print("\n".join(table(work)))
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        for name in arguments.names:
            print(json.dumps(run(work, name, arguments.seconds, arguments.seed)))


if __name__ == "__main__":
    main()
