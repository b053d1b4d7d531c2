"""Compare the scores of `cloob eval` with those of the program CLIP_benchmark on the same model, exported to open_clip.

    python scripts/compare_clip_benchmark.py MODEL DATASET... --program PATH/TO/clip_benchmark

The data sets are folders in CLIP_benchmark's webdataset layout. The program is run as it is, in an environment of its
own (version 1.6.2 needs NumPy below 2.4). It and open_clip import torchvision; tests/helpers/torchvision_stand_in has
as much as they use. Prints both scores in percent; exits with 1 where two differ by more than 0.1 points.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cloob_cli.commands.eval_data import find_data_sets
from cloob_cli.commands.eval_run import Evaluations
from cloob_cli.evaluation.evaluate import Asked
from cloob_cli.export import export_model
from cloob_cli.registry.resolve import find_model

STAND_IN = Path(__file__).resolve().parents[1] / "tests" / "helpers" / "torchvision_stand_in"
TOLERANCE = 0.1  # points


def judged(program: str, model: Path, data: Path, output: Path) -> dict[str, float]:
    """The metrics of the program on one data set."""
    command = [
        program, "eval", "--dataset", "wds/set", "--dataset_root", str(data), "--model", f"local-dir:{model}",
        "--pretrained", "", "--no_amp", "--num_workers", "0", "--quiet", "--recall_k", "1", "5", "10",
        "--task", task_of(data), "--output", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(STAND_IN)}, capture_output=True, text=True)
    if done.returncode or not output.exists():
        sys.exit(f"{program} failed on {data}:\n{done.stderr[-2000:]}")
    metrics: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))["metrics"]
    return metrics


def task_of(data: Path) -> str:
    kind = data / "dataset_type.txt"
    retrieval = kind.is_file() and kind.read_text(encoding="utf-8").split() == ["retrieval"]
    return "zeroshot_retrieval" if retrieval else "zeroshot_classification"


def own(model: str, data: list[Path]) -> list[dict[str, Any]]:
    """The records of `cloob eval`."""
    work = Evaluations(device="cpu", precision="fp32", cache=False)
    work.run([model], find_data_sets([str(path) for path in data], Asked(resamples=0), None).jobs)
    return work.records


def compare(model: str, data: list[Path], program: str) -> float:
    """Print a table; the largest difference in points."""
    largest = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "model"
        export_model(find_model(model), "open_clip", exported)
        print("data set\tmetric\tCLIP_benchmark\tcloob eval\tdifference")
        for path, record in zip(data, own(model, data), strict=True):
            theirs = judged(program, exported, path, Path(temporary) / f"{path.name}.json")
            for name, value in record["metrics"].items():
                if value is None:  # fewer than five classes have no acc5 there either
                    continue
                difference = 100 * (value - theirs[name])
                largest = max(largest, abs(difference))
                print(
                    f"{path.name}\t{name}\t{100 * theirs[name]:.2f}\t{100 * value:.2f}\t{difference:+.2f}", flush=True
                )
    return largest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--program", default="clip_benchmark")
    arguments = parser.parse_args()
    sys.exit(compare(arguments.model, arguments.data, arguments.program) > TOLERANCE)
