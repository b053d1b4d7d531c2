"""Put the CLOOB paper's claims to the test at a small size: `python scripts/claim.py DATA WORK`.

DATA is the folder of the pictograms (train/ and eval/), WORK a folder that keeps everything; the command may be stopped
at any time and goes on where it was. Three stages, each a list in claim.toml beside this file:

  search   every loss of recipes/claim/ with the same few settings, one seed, short runs; each keeps the setting with
           the best mean top-1 on validation drawings (those that scripts/pictogram_trials.py sets aside)
  claims   every loss with the setting that it kept, several seeds
  around   CLOOB with other temperatures

Then every run is analyzed (`cloob analyze`), those of the last two stages are scored on the eval sets (`cloob eval`),
and the tables of docs/claim.md are printed. A run is `cloob train` with a recipe of recipes/claim/ and `--set`; the
recipe that its folder keeps repeats it to the bit on one kind of processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pictogram_trials import HELD_OUT, prepare

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes" / "claim"
PLAN = Path(__file__).with_suffix(".toml")
# Student's t for a two-sided interval of 95 % with so many degrees of freedom.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


@dataclass(frozen=True)
class Plan:
    """The runs that are made: see claim.toml."""

    settings: dict[str, list[str]]
    search_steps: int
    seeds: list[int]
    steps: int
    around: dict[str, list[str]]


@dataclass(frozen=True)
class Work:
    """The folder that keeps everything, and the data that it was begun with."""

    data: Path
    folder: Path

    @property
    def validation(self) -> list[Path]:
        return [self.folder / "validation" / test for test in HELD_OUT]


def read_plan(path: Path) -> Plan:
    """Read claim.toml; a key that is unknown or missing is an error."""
    return Plan(**tomllib.loads(path.read_text(encoding="utf-8")))


def arms() -> list[str]:
    """The names of the losses that are compared, those of the recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def cloob(*arguments: str | Path) -> str:
    """Run a command of the program, with one thread; its standard output."""
    command = [sys.executable, "-m", "cloob_cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode not in (0, 3):  # 3: some images were skipped
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    return done.stdout


def train(work: Work, name: str, arm: str, settings: list[str], steps: int, seed: int) -> dict[str, Any]:
    """Train a run unless it is done; its row: what it is, processor time, and top-1 on the validation drawings."""
    row_file = work.folder / "runs" / name / "row.json"
    if row_file.exists():
        row: dict[str, Any] = json.loads(row_file.read_text(encoding="utf-8"))
        return row
    run = work.folder / "runs" / name
    options = [
        f"seed={seed}",
        f"data.train={work.folder / 'train'}",
        f"validation.zero_shot={[str(path) for path in work.validation]}",
        f"train.steps={steps}",
        "data.workers=1",
        *settings,
    ]
    before = os.times()
    cloob(
        "train",
        RECIPES / f"{arm}.toml",
        "--out",
        run,
        "--resume",
        "--device",
        "cpu",
        *(word for option in options for word in ("--set", option)),
    )
    after = os.times()
    metrics = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))["metrics"]
    row = {
        "name": name,
        "arm": arm,
        "seed": seed,
        "settings": settings,
        "processor_seconds": after.children_user
        + after.children_system
        - before.children_user
        - before.children_system,
        "validation_top1": fmean(metrics[f"zero_shot/{test}/top1"] for test in HELD_OUT),
        "recall_10": metrics["retrieval/image_to_text/recall_10"],
    }
    temporary = row_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(row, indent=1), encoding="utf-8")
    temporary.replace(row_file)
    print(f"{time.strftime('%H:%M:%S')} {name}: validation top-1 {100 * row['validation_top1']:.2f} %", file=sys.stderr)
    return row


def measure(work: Work, name: str, with_scores: bool = True) -> dict[str, Any]:
    """The scores of a finished run on the eval sets, and the analysis of its embeddings of the validation drawings."""
    run = work.folder / "runs" / name
    commands = {"analysis.json": ["analyze", run / "model", work.validation[0], "--scale-hopfield", "14.3"]}
    if with_scores:
        commands["scores.json"] = ["eval", run / "model", "pictograms", "--data", work.data / "eval"]
    found = {}
    for file, command in commands.items():
        path = run / file
        if not path.exists():
            path.write_text(cloob(*command, "--device", "cpu", "--json", "--quiet"), encoding="utf-8")
        found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


def search(work: Work, plan: Plan) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """The setting of each loss, whose short run scores best on validation drawings; and the rows of all short runs."""
    kept, tried = {}, []
    for arm in arms():
        rows = {
            name: train(work, f"search-{arm}-{name}", arm, settings, plan.search_steps, seed=0)
            for name, settings in plan.settings.items()
        }
        best = max(rows, key=lambda name: rows[name]["validation_top1"])
        kept[arm] = plan.settings[best]
        print(f"{arm}: {best}", file=sys.stderr)
        tried += [row | {"setting": name, "kept": name == best} for name, row in rows.items()]
    return kept, tried


def run_all(work: Work, plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All stages: the rows of the search with their analyses, and those of the other runs with their scores as well."""
    kept, tried = search(work, plan)
    rows = [
        train(work, f"{arm}-{seed}", arm, kept[arm], plan.steps, seed) | {"variant": arm}
        for seed in plan.seeds  # seeds outermost: what is there after half of the time compares all losses
        for arm in arms()
    ]
    rows += [
        train(work, f"{variant}-{plan.seeds[0]}", "cloob", [*kept["cloob"], *changes], plan.steps, plan.seeds[0])
        | {"variant": variant}
        for variant, changes in plan.around.items()
    ]
    tried = [row | measure(work, row["name"], with_scores=False) for row in tried]
    return tried, [row | measure(work, row["name"]) for row in rows]


def interval(values: list[float]) -> str:
    """The mean, and half of its 95 % interval (Student's t) where there are several values."""
    if len(values) < 2:
        return f"{fmean(values):.2f}"
    return f"{fmean(values):.2f} ± {STUDENT_T[len(values) - 1] * stdev(values) / len(values) ** 0.5:.2f}"


def search_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The short runs: a line each, all losses with one setting side by side."""
    yield "| setting | loss | validation | R@10 | eigenvalues for 99 % image | Ajne image | text | Ajne text |"
    yield "|---" * 8 + "|"
    for row in sorted(rows, key=lambda row: str(row["setting"])):
        cells = [f"{100 * row[key]:.2f}" for key in ("validation_top1", "recall_10")]
        for side in ("image", "text"):
            found = row["analysis"]["embeddings"][side]
            cells += [str(found["eigenvalues_99"]), f"{found['ajne']:.0f}"]
        name = f"**{row['arm']}**" if row["kept"] else row["arm"]
        yield f"| {row['setting']} | {name} | {' | '.join(cells)} |"


def scores_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Zero-shot top-1 in per cent, one line a variant, one column a data set; and recall@10 among held-out pairs.

    The mean leaves the ten digits of mnist out: it is that of the model's card.
    """
    datasets = [record["dataset"] for record in rows[0]["scores"]]
    yield f"| loss | runs | validation | R@10 | {' | '.join(datasets)} | mean without mnist |"
    yield "|---" * (len(datasets) + 5) + "|"
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        tops = [[100 * record["metrics"]["acc1"] for record in row["scores"]] for row in own]
        cells = [interval([100 * row[key] for row in own]) for key in ("validation_top1", "recall_10")]
        cells += [interval(list(column)) for column in zip(*tops, strict=True)]
        means = [fmean(value for value, name in zip(top, datasets, strict=True) if name != "mnist") for top in tops]
        yield f"| {variant} | {len(own)} | {' | '.join(cells)} | {interval(means)} |"


def analysis_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Geometry of the embeddings of the validation drawings, before retrieval and after it from their own kind."""
    measures = [f"{measure} {side}" for side in ("image", "text") for measure in ("eigenvalues for 99 %", "Ajne")]
    measures += [f"eigenvalues {side}, retrieved" for side in ("image", "text")]
    yield f"| loss | {' | '.join(measures)} | effective patterns | modality gap |"
    yield "|---" * (len(measures) + 3) + "|"
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [row["analysis"] for row in rows if row["variant"] == variant]
        retrieved = [analysis["retrieval"][0] for analysis in found]
        columns = [
            [float(analysis["embeddings"][side][key]) for analysis in found]
            for side in ("image", "text")
            for key in ("eigenvalues_99", "ajne")
        ]
        columns += [
            [float(each[f"from_{side}s"][side]["eigenvalues_99"]) for each in retrieved] for side in ("image", "text")
        ]
        columns.append([each["from_images"]["image"]["effective_patterns"]["mean"] for each in retrieved])
        columns.append([analysis["embeddings"]["modality_gap"] for analysis in found])
        yield f"| {variant} | {' | '.join(interval(column) for column in columns)} |"


def plot_spectra(rows: list[dict[str, Any]], path: Path) -> None:
    """The eigenvalues of the image embeddings' covariance, the mean over the runs of each loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for variant in dict.fromkeys(row["variant"] for row in rows):
        spectra = [row["analysis"]["eigenvalues"]["image"] for row in rows if row["variant"] == variant]
        axes.plot(
            range(1, len(spectra[0]) + 1), [fmean(values) for values in zip(*spectra, strict=True)], label=variant
        )
    axes.set(xlabel="eigenvalue", ylabel="variance", xscale="log", yscale="log", ylim=(1e-7, None))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--plan", type=Path, default=PLAN)
    arguments = parser.parse_args()
    work = Work(arguments.data.resolve(), arguments.work.resolve())
    if not all((path / "test" / "nshards.txt").exists() for path in work.validation):
        prepare(work.data / "train", work.folder)
    tried, rows = run_all(work, read_plan(arguments.plan))
    print("\n".join([*search_table(tried), "", *scores_table(rows), "", *analysis_table(rows)]))
    plot_spectra(rows, work.folder / "spectra.svg")


if __name__ == "__main__":
    main()
