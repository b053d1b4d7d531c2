"""`cloob zoo verify`: the files of a model, the embeddings that it computes, and the scores of its entry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloob_cli import console
from cloob_cli.commands.options import InputNameArgument, JsonOption
from cloob_cli.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from cloob_cli.registry.entries import Score, ZooEntry
    from cloob_cli.registry.verify import Check

_TOLERANCE = 0.1  # points: what rounding of the stored value and of another processor may make


def register(app: typer.Typer) -> None:
    """Add this module's commands to `cloob zoo`."""
    app.command("verify")(verify)


def verify(
    name: InputNameArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also compute an embedding and compare it.")] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Also measure the scores of its entry again, on the data that is here.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="The folder of the scores' local data sets.", show_default="below CLOOB_HOME"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare a model's files with their hashes.

    The exit code is 1 where one differs. With --scores, scores must agree to 0.1 points; those whose data is not
    here are named, and the exit code is then 3.
    """
    from cloob_cli.registry.verify import verify_model

    checks = verify_model(name, deep)
    if scores:
        checks += check_scores(name, data)
    if json:
        console.json_document([check.__dict__ for check in checks])
    else:
        console.table(["what", "state", "detail"], [(check.what, check.state, check.detail) for check in checks])
    wrong = [check.what for check in checks if check.failed]
    if wrong:
        raise VerificationError(f"{name} is not what was stored: {', '.join(wrong)}", f"cloob zoo pull {name} --force")
    if any(check.state == "not here" for check in checks):
        raise typer.Exit(3)


def check_scores(name: str, folder: Path | None) -> list[Check]:
    """Measure the scores that an entry says how to measure, and compare them to 0.1 points.

    Args:
        name: a zoo name, of a model that is on this machine.
        folder: where the suites' local data sets are; None: where fetched ones are kept.

    Raises:
        UsageError: the model has no zoo entry, or one without such a score.
        DataError: not one of the data sets is here.
    """
    from cloob_cli.registry import entries

    entry = entries.find_entry(name)
    scores = [score for score in entry.scores if score.measured is not None]
    if not scores:
        raise UsageError(f"the entry of {entry.name} has no score that can be measured again")
    found = _measured(entry, scores, folder)
    return [_check(score, found) for score in scores]


def _measured(entry: ZooEntry, scores: list[Score], folder: Path | None) -> dict[tuple[str, str, str], float]:
    """{(suite, data set, metric): fraction} of every data set that the scores need and that is here."""
    from cloob_cli.commands.eval_data import find_data_sets
    from cloob_cli.commands.eval_run import Evaluations
    from cloob_cli.evaluation.evaluate import Asked

    wanted: dict[str, set[str]] = {}
    for score in scores:
        if score.measured is not None:
            wanted.setdefault(score.measured.suite, set()).update(score.measured.sets)
    values = {}
    for suite, sets in wanted.items():
        jobs = find_data_sets([suite], Asked(resamples=0), folder, only=sets).jobs
        work = Evaluations()
        work.run([entry.name], jobs)
        for record in work.records:
            for metric, value in record["metrics"].items():
                if value is not None:
                    values[suite, record["dataset"], metric] = value
        if work.failures:
            console.warn(f"{suite}: {len(work.failures)} image(s) could not be read")
    return values


def _check(score: Score, found: dict[tuple[str, str, str], float]) -> Check:
    from cloob_cli.registry.verify import Check

    measured = score.measured
    assert measured is not None
    what = f"{score.dataset}, {score.metric}"
    values = [found.get((measured.suite, one, measured.metric)) for one in measured.sets]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Check(what, "not here", f"{len(values) - len(known)} of its data sets")
    value = round(100 * sum(known) / len(known), 1)
    right = abs(value - score.value) <= _TOLERANCE + 1e-9
    return Check(what, "right" if right else "wrong", f"{value:.1f} %, the entry says {score.value:.1f} %")
