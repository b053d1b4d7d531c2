"""Measure ways to fine-tune on the pictogram data: from a model of icons to emoji, and what it forgets of icons.

    python scripts/finetune_table.py prepare DATA WORK    # once: DATA has train/*.parquet and eval/
    python scripts/finetune_table.py run WORK             # the starting model and the runs from it, in turn
    python scripts/finetune_table.py table WORK           # Markdown

`prepare` splits the training pairs by their column `kind`: icons (`icon`, `color-icon`) and emoji (`emoji`); all else
is left out. Of each 1,000 pairs are held out for retrieval. `run` takes up where it was cut off; every run is one
`cloob train` with one thread, whose processor time, the validation at its end included, the system measures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"icons": {"icon", "color-icon"}, "emoji": {"emoji"}}
HELD_OUT = 1000  # pairs of each domain
NEW, OLD = ["emoji_emojione"], ["icons_iconoir", "icons_flat_color", "icons_kameleon"]

START = {
    "model.vision.image_size": 32, "train.image_sizes": [], "tokenizer.vocab_size": 4096,
    "train.batch_size": 256, "optimizer.warmup_steps": 100, "data.validation_fraction": 0.0,
    "train.precision": "fp32",
}  # fmt: skip
SMALL = {
    "train.precision": "fp32",
    "train.batch_size": 256,
    "data.validation_fraction": 0.0,
    "objective.mask_equal_captions": True,
}
# name: (recipe, what is changed in it). The rates are the first that were tried.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("finetune-folder", SMALL | {
        "train.epochs": 4, "optimizer.learning_rate": 5e-4, "optimizer.layer_decay": 1.0, "augment.flip": False,
    }),
    "lit": ("lit-folder", SMALL | {"train.epochs": 12, "optimizer.learning_rate": 5e-4}),
    "head": ("lit-folder", SMALL | {
        "train.freeze": ["image", "text"], "train.epochs": 40, "optimizer.learning_rate": 1e-3,
        "model.vision.adapter.layers": 2, "model.text.adapter.layers": 2,
    }),
}  # fmt: skip


def prepare(data: Path, work: Path) -> None:
    """Write WORK/icons.parquet, WORK/emoji.parquet and the held-out pairs of both."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    work.mkdir(parents=True, exist_ok=True)
    table = pyarrow.concat_tables(parquet.read_table(path) for path in sorted((data / "train").glob("*.parquet")))
    for name, kinds in KINDS.items():
        pairs = table.filter(compute.is_in(table["kind"], pyarrow.array(sorted(kinds))))
        for part, rows in (("held-out", pairs.slice(0, HELD_OUT)), ("train", pairs.slice(HELD_OUT))):
            parquet.write_table(rows.select(["image", "captions"]), work / f"{name}-{part}.parquet")
        print(f"{name}: {pairs.num_rows - HELD_OUT:,} pairs, {HELD_OUT:,} held out")
    (work / "eval").unlink(missing_ok=True)
    (work / "eval").symlink_to((data / "eval").resolve())


def run(work: Path, fraction: float = 1.0) -> None:
    """Train the starting model, then fine-tune it in every way; what is finished is left as it is.

    Args:
        fraction: of the steps; below 1 to try the script, not to measure.
    """
    sets = [str(work.resolve() / "eval" / name) for name in NEW + OLD]
    steps = {"data.train": str(work / "icons-train.parquet"), "train.steps": max(1, round(600 * fraction))}
    _train(work, "start", "pictograms", START | steps)
    shared = {
        "model.init": str(work.resolve() / "runs" / "start" / "model"), "data.train": str(work / "emoji-train.parquet"),
        "data.validation": str(work / "emoji-held-out.parquet"), "validation.zero_shot": sets,
    }  # fmt: skip
    for name, (recipe, changes) in RUNS.items():
        _train(work, name, recipe, shared | changes | {"train.epochs": changes["train.epochs"] * fraction})


def _train(work: Path, name: str, recipe: str, changes: dict[str, Any]) -> None:
    folder = work / "runs" / name
    if (folder / "result.json").exists():
        return
    changes = changes | {"name": name, "data.workers": 0, "train.log_every": 10, "train.checkpoint_every": 50}
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "cloob_cli", "train", recipe, "--out", str(folder), "--device", "cpu", "--resume"]
    process = subprocess.Popen(
        [*command, *settings], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"the run {name} failed; the same command goes on")
    times = work / "times.json"
    known = json.loads(times.read_text()) if times.exists() else {}
    times.write_text(json.dumps(known | {name: usage.ru_utime + usage.ru_stime}, indent=2) + "\n")


def table(work: Path) -> None:
    """Print the table: processor minutes, and the scores of both domains."""
    sys.path.insert(0, str(ROOT))
    times = json.loads((work / "times.json").read_text())
    rows = [
        ("the start: icons only", "start", "runs/start/model"),
        ("(a) full", "full", "runs/full/end"),
        ("(b) LiT: image tower locked", "lit", "runs/lit/model"),
        ("(c) heads on kept features", "head", "runs/head/model"),
        ("(d) full, interpolated at 0.5", "full", "runs/full/model"),
    ]
    print("| run | processor minutes | emoji: top-1 | emoji: recall@10 | icons: top-1 | icons: recall@10 |")
    print("|---|---|---|---|---|---|")
    for title, name, folder in rows:
        found = _scores(work, work / folder)
        cells = [
            f"{times[name] / 60:.1f}",
            *(f"{100 * found[key]:.1f} %" for key in ("new", "new@10", "old", "old@10")),
        ]
        print(f"| {title} | {' | '.join(cells)} |")
    print("\n| alpha | emoji: top-1 | icons: top-1 |\n|---|---|---|")
    for row in json.loads((work / "runs" / "full" / "interpolation.json").read_text()):
        print(f"| {row['alpha']:g} | {100 * _mean(row, NEW):.1f} % | {100 * _mean(row, OLD):.1f} % |")


def _scores(work: Path, folder: Path) -> dict[str, float]:
    import torch

    from cloob_cli.checkpoint.folder import open_model
    from cloob_cli.data.classification import open_classification_set
    from cloob_cli.recipe import DataSection
    from cloob_cli.training.data_split import open_data
    from cloob_cli.training.validation import Validator

    torch.set_num_threads(1)
    model, scores = open_model(folder, "cpu", torch.float32), {}
    for domain, sets, data in (("new", NEW, "emoji"), ("old", OLD, "icons")):
        path = str(work / f"{data}-held-out.parquet")
        held_out = open_data(DataSection(train=path, validation=path), HELD_OUT).held_out
        opened = [open_classification_set(work / "eval" / name) for name in sets]
        found = Validator(held_out, opened, model.preprocess, model.tokenize).run(model)
        scores[domain] = _mean(found, sets)
        recall = [found[f"retrieval/{way}/recall_10"] for way in ("image_to_text", "text_to_image")]
        scores[f"{domain}@10"] = fmean(recall)
    return scores


def _mean(metrics: dict[str, float], sets: list[str]) -> float:
    return fmean(metrics[f"zero_shot/{name}/top1"] for name in sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("data", type=Path)
    running = commands.add_parser("run")
    for one in (preparing, running, commands.add_parser("table")):
        one.add_argument("work", type=Path)
    running.add_argument("--fraction", type=float, default=1.0, help="of the steps, to try the script")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.data, options.work)
    elif options.command == "run":
        run(options.work, options.fraction)
    else:
        table(options.work)


if __name__ == "__main__":
    main()
