"""Rebuild the pictograms, captioned drawings for training and evaluation, from packages of the npm registry.

    python recipes/pictograms/prepare.py OUT                      # everything
    python recipes/pictograms/prepare.py OUT --sets lucide,noto   # some sets only

README.md beside this file says what comes out. Start here: `main` reads sources.toml (sources.py), fetches the packages
(packages.py), chooses drawings and words them (choosing.py, captions.py), renders set by set (rendering.py,
drawing.py), takes out training drawings that are near a drawing of an evaluation set (near.py) and writes everything
(writing.py).
What is rendered is kept in OUT/work, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Beside this file in a checkout, beside the installed package otherwise.
sys.path[:0] = [str(HERE), *([str(HERE.parents[1])] if (HERE.parents[1] / "cloob_cli").is_dir() else [])]

from choosing import Job, jobs_of  # noqa: E402
from near import CELLS, least_distances  # noqa: E402
from packages import fetch  # noqa: E402
from rendering import Drawn, Labeled, digits, load_or_render  # noqa: E402
from sources import Package, Sources, read_sources  # noqa: E402
from writing import write_evaluation, write_licenses, write_summary, write_training  # noqa: E402

from cloob_cli import console  # noqa: E402
from cloob_cli.errors import CloobError, MissingExtraError, UsageError  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 1 failed, 2 wrong usage or sources, 130 interrupted)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for train/, eval/, sources.json and LICENSES.md")
    parser.add_argument("--sources", type=Path, default=HERE / "sources.toml", help="another sources.toml")
    parser.add_argument("--packages", type=Path, help="folder of fetched packages (OUT/work/packages)")
    parser.add_argument("--sets", default="", help="only these sets, separated by commas")
    parser.add_argument("--limit", type=int, help="at most so many drawings of each set")
    parser.add_argument("--workers", type=int, default=1, help="processes that render (1)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args(arguments)
    console.configure(quiet=options.quiet)
    try:
        prepare(options)
    except CloobError as problem:
        console.show_error(problem)
        return problem.exit_code
    except KeyboardInterrupt:
        console.info("interrupted; the same command goes on from here")
        return 130
    return 0


def prepare(options: argparse.Namespace) -> None:
    """Fetch, choose, render, compare and write.

    Raises:
        CloobError: one of its kinds, for everything that a person can put right.
    """
    _require_resvg()
    if options.workers < 1 or (options.limit is not None and options.limit < 1):
        raise UsageError("--workers and --limit take numbers from 1")
    sources = _selected(read_sources(options.sources), options.sets)
    work = options.out / "work"
    folder = options.packages or work / "packages"
    tarballs: dict[str, Path] = {}
    with console.track("Fetching", len(sources.packages), "packages") as progress:
        for package in sources.packages:
            tarballs[package.name] = fetch(package, folder)
            progress.advance()
    jobs = jobs_of(sources, tarballs, options.limit)
    drawn = {one.set: one for one in _render(jobs, work / "rendered", options.workers)}
    digit_sets = {
        package: digits(tarballs[package.name], evaluation.images_per_class)
        for evaluation in sources.evaluation
        if evaluation.images_per_class
        for package in sources.packages
        if package.use == "digits"
    }
    _write(options.out, sources, jobs, drawn, digit_sets)


def _require_resvg() -> None:
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "resvg-py, which renders the drawings, is not installed", f"pip install -r {HERE / 'requirements.txt'}"
        ) from None


def _selected(sources: Sources, names: str) -> Sources:
    if not names:
        return sources
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in {one.name for one in sources.sets}]
    if unknown:
        raise UsageError(f"there is no set {unknown[0]} in the sources")
    sets = [one for one in sources.sets if one.name in wanted]
    uses = {one.use for one in sets}
    tags = {one.tags for one in sets}
    return sources.model_copy(
        update={
            "sets": sets,
            "packages": [p for p in sources.packages if p.use in {"icons", "emoji", *tags}],
            "evaluation": [one for one in sources.evaluation if one.name in uses],
        }
    )


def _render(jobs: list[Job], folder: Path, workers: int) -> list[Drawn]:
    """Render what is not rendered yet, the longest sets first so that several processes end together."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with console.track("Rendering", sum(len(job.drawings) for job in jobs), "drawings") as progress:
        order = sorted(jobs, key=lambda job: (-len(job.drawings), job.set))
        if workers == 1:
            for job in order:
                progress.note(job.set)
                drawn.append(load_or_render(job, folder))
                progress.advance(len(job.drawings))
            return drawn
        with ProcessPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
            running = {pool.submit(load_or_render, job, folder): job for job in order}
            try:
                for done in as_completed(running):
                    drawn.append(done.result())
                    progress.advance(len(running[done].drawings))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return drawn


def _write(
    out: Path,
    sources: Sources,
    jobs: list[Job],
    drawn: dict[str, Drawn],
    digit_sets: dict[Package, list[Labeled]],
) -> None:
    import numpy as np

    held_out = [drawn[job.set].hash_rows for job in jobs if job.use != "train"]
    references = np.concatenate([np.zeros((0, CELLS * CELLS), np.uint8), *held_out])
    rows, near, names = [], Counter[str](), []
    for job in jobs:
        if job.use != "train":
            continue
        one = drawn[job.set]
        far = least_distances(one.hash_rows, references) > sources.limits.near
        near[job.set] = len(one.rows) - int(far.sum())
        rows += [row for row, keep in zip(one.rows, far, strict=True) if keep]
        names += [job.set] * int(far.sum())
    training = any(job.use == "train" for job in jobs)
    counts = {"train": write_training(out / "train", rows, sources.limits.seed) if training else 0}
    for evaluation in sources.evaluation:
        images: list[Labeled] = (
            [pair for pairs in digit_sets.values() for pair in pairs] if evaluation.images_per_class else []
        )
        for job in jobs:
            if job.use == evaluation.name:
                images += drawn[job.set].labeled
        counts[evaluation.name] = write_evaluation(out / "eval" / evaluation.name, images, evaluation.templates)
    kept = Counter(names)
    kept.update({job.set: len(drawn[job.set].labeled) for job in jobs if job.use != "train"})
    write_summary(out, sources, jobs, drawn, kept, near, counts)
    write_licenses(out, sources, jobs, kept)
    console.info(
        f"{counts['train']:,} training pairs; {sum(counts.values()) - counts['train']:,} images in "
        f"{len(sources.evaluation)} evaluation sets; {sum(near.values()):,} training drawings near one of them and "
        f"{sum(sum(one.refused.values()) for one in drawn.values()):,} that could not be used are left out"
    )


if __name__ == "__main__":
    sys.exit(main())
