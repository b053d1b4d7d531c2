"""`cloob eval --html`: the results of all evaluations, with examples looked up in the data sets, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli import console, launch

if TYPE_CHECKING:
    from cloob_cli.commands.eval_data import Job
    from cloob_cli.data.labeled_set import ClassificationSet
    from cloob_cli.report.evaluation import Example

_EXAMPLES = 4  # images that a confusion shows


def write_page(
    page: Path, records: Sequence[dict[str, Any]], jobs: Sequence[Job], models: Sequence[str], workers: int | None
) -> None:
    """Write a page, in the first of several processes.

    Args:
        records: with details (`Evaluations.detailed`): of the first model for every job, then of the next.
        models: as they were asked for.
        workers: threads that decode examples; None picks by the number of cores.
    """
    from cloob_cli.commands.eval_run import heading
    from cloob_cli.evaluation.results import metric_names
    from cloob_cli.parallel import core_count
    from cloob_cli.report.evaluation import Evaluation, Scores, write_evaluation

    if launch.rank() > 0:
        return
    workers = min(8, core_count()) if workers is None else workers
    examples = [_examples(job, records[number :: len(jobs)], workers) for number, job in enumerate(jobs)]
    scores = []
    for number, record in enumerate(records):
        model, dataset = divmod(number, len(jobs))
        scores.append(Scores(model, dataset, record, examples[dataset]))
    shown = [records[number * len(jobs)]["model"] for number in range(len(models))]
    evaluation = Evaluation(
        [name if shown.count(name) == 1 else f"{name} ({asked})" for name, asked in zip(shown, models, strict=True)],
        _told_apart([job.data.name for job in jobs]),
        scores,
        {name: heading(name) for name in metric_names(records)},
        _facts(records),
    )
    write_evaluation(page, evaluation)
    console.info(f"wrote {page}: {len(records):,} result(s), {page.stat().st_size / 1e6:.2g} MB")


def _examples(job: Job, records: Sequence[dict[str, Any]], workers: int) -> dict[str, Example]:
    """The images that the confusions of some records name, where they are in the job's data set."""
    from cloob_cli.data.labeled_set import ClassificationSet
    from cloob_cli.parallel import map_in_order

    data = job.data
    confusions = [one for record in records for one in record.get("confusions", [])]
    if not confusions or not isinstance(data, ClassificationSet):
        return {}
    wanted = {name for one in confusions for name in one["examples"][:_EXAMPLES]}
    numbers = [index for index in range(len(data)) if data.image_name(index) in wanted]
    found = map_in_order(lambda index: _example(data, index), numbers, workers, ahead=2 * workers + 1)
    return {example.name: example for example in found}


def _example(data: ClassificationSet, index: int) -> Example:
    from cloob_cli.data.image_folder import suffixes
    from cloob_cli.data.thumbnails import thumbnail
    from cloob_cli.errors import ImageError
    from cloob_cli.report.evaluation import Example

    path = data.sources[index].path
    file = path if path.suffix.lower() in suffixes() else None  # no archive and no table
    try:
        return Example(data.image_name(index), thumbnail(data.image(index)), file)
    except ImageError:  # it was readable when its embedding was kept
        return Example(data.image_name(index), file=file)


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, with their number where the same one comes again."""
    return [
        name if name not in names[:place] else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def _facts(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Lines about what the scores depend on, one a result."""
    from cloob_cli.version import __version__

    facts = [("cloob", __version__), ("scores", "percent, with 95 % intervals of a bootstrap over the images")]
    for record in records:
        settings = record.get("settings", {})
        parts = [f"weights {settings['weights_sha256'][:12]}"] if "weights_sha256" in settings else []
        parts += [f"{name.replace('_', ' ')} {settings[name]}" for name in ("split", "limit") if name in settings]
        if "templates" in settings:
            parts.append(f"{len(settings['templates'])} template(s)")
        parts += [
            f"{record[name]} {name}" for name in ("images", "texts", "classes", "skipped", "ties") if record.get(name)
        ]
        if record.get("published", {}).get("by"):
            parts.append(f"published by {record['published']['by']}")
        facts.append((f"{record['dataset']}, {record['model']}, {record['task'].replace('_', ' ')}", ", ".join(parts)))
    return facts
