"""The work of `cloob eval`: models run over data sets, results are shown and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli import console, launch
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    from cloob_cli.commands.eval_data import Job
    from cloob_cli.errors import Failure
    from cloob_cli.evaluation.results import Record

_LISTED = 10  # skipped images that stderr names
_CONFUSIONS = 20
_DETAILED = {"zeroshot_classification", "linear_probe"}  # tasks whose records may have each class
_HEADINGS = {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "mean per class"}


class Evaluations:
    """The evaluations of one call: `run` fills `records` (as JSON has them), `detailed` and `failures`.

    `detailed` are the same records with each class and confusions, whether those are part of the result or not.

    Args:
        output: the file that is written after each evaluation.
        skip_existing: records that it holds are taken over.
        details: each class and confusions are part of the result.
        page: they are needed for a page.
        cache: embeddings are kept below CLOOB_HOME.
    """

    def __init__(
        self,
        *,
        output: Path | None = None,
        skip_existing: bool = False,
        details: bool = False,
        page: bool = False,
        cache: bool = True,
        device: str | None = None,
        precision: str | None = None,
        batch_size: int = 64,
        workers: int | None = None,
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.detailed: list[dict[str, Any]] = []
        self.failures: list[Failure] = []
        self._output, self._details, self._page, self._cache = output, details, page, cache
        self._device, self._precision = device, precision
        self._batch_size, self._workers = batch_size, workers
        self._asked_for: list[str] = []  # for each record its model, as it was named on the command line
        self._earlier: list[dict[str, Any]] = []
        if skip_existing and output is not None and output.exists():
            from cloob_cli.evaluation.results import read_records

            self._earlier = read_records(output)

    def run(self, models: list[str], jobs: list[Job]) -> None:
        """Measure every model on every data set."""
        from cloob_cli.checkpoint.folder import weights_sha256
        from cloob_cli.commands.inference_run import model_name, open_model
        from cloob_cli.evaluation import processes
        from cloob_cli.evaluation.embeddings import Embedder
        from cloob_cli.registry import paths

        device = processes.start(self._device)
        for name in models:
            model, folder = open_model(name, device, self._precision)
            kept = paths.evaluation_folder() if self._cache else None
            identity = weights_sha256(folder)
            embedder = Embedder(model, identity, kept, self._batch_size, self._workers)
            for job in jobs:
                shown = model_name(model, folder)
                existing = self._existing(shown, identity, job)
                record = existing or self._measure(embedder, shown, identity, job)
                self._asked_for.append(name)
                self.detailed.append(record)
                self.records.append(record if existing or self._details else _without_details(record))
                self._write()

    def show(self, as_json: bool) -> None:
        """Print the result, in the first of several processes."""
        if launch.rank() > 0:
            return
        if as_json:
            console.json_document(self.records)
            return
        console.table(*_table(self.records, self._asked_for), dispensable=["model", "task", "images"])
        if self._details:
            for record in self.records:
                _show_details(record)

    def _existing(self, model: str, identity: str, job: Job) -> dict[str, Any] | None:
        from cloob_cli.evaluation.evaluate import task_of
        from cloob_cli.evaluation.results import TASK_NAMES

        wanted = (job.data.name, model, TASK_NAMES[task_of(job.data, job.asked)])
        for record in self._earlier:
            found = (record["dataset"], record["model"], record["task"])
            if found != wanted or record.get("settings", {}).get("weights_sha256") != identity:
                continue
            if "per_class" in record or record["task"] not in _DETAILED or not (self._details or self._page):
                return record
        return None

    def _measure(self, embedder: Any, model: str, identity: str, job: Job) -> dict[str, Any]:
        from cloob_cli.evaluation.evaluate import chosen_images, evaluate
        from cloob_cli.evaluation.results import Published
        from cloob_cli.version import __version__

        skipped = 0

        def read(failure: Failure | None) -> None:
            nonlocal skipped
            skipped += failure is not None
            if failure is not None and skipped <= _LISTED and launch.rank() == 0:
                console.warn(f"skipped {failure.name}: {failure.reason}")
            bar.advance()

        total = len(chosen_images(job.data, job.asked.limit)) + len(job.train or ())
        with console.track(job.data.name, total // launch.count(), "images") as bar:
            record = evaluate(embedder, model, job.data, job.asked, read, job.train)
        record.settings |= {"weights_sha256": identity, "version": __version__}
        if model in job.published:
            record.published = Published(job.published[model] / 100, job.published_by)
        self._tell(record)
        self.failures += record.failures
        return record.as_dict(details=True)

    def _tell(self, record: Record) -> None:
        if launch.rank() > 0:
            return
        if record.failures:
            console.warn(f"{record.dataset}: {len(record.failures)} image(s) skipped; the scores are those of the rest")
        if record.ties:
            console.warn(
                f"{record.dataset}: in {counted(record.ties, 'query', 'queries')} a wrong answer is exactly as near as "
                "the right one, "
                "and counts as nearer"
            )
        if record.settings.get("converged") is False:
            console.warn(f"{record.dataset}: the logistic regression did not converge")

    def _write(self) -> None:
        from cloob_cli.atomic_files import replacing
        from cloob_cli.evaluation.results import csv_text

        if self._output is None or launch.rank() > 0:
            return
        text = json.dumps(self.records, indent=2) + "\n"
        if self._output.suffix.lower() == ".csv":
            text = csv_text(self.records)
        with replacing(self._output) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _table(records: list[dict[str, Any]], asked_for: list[str]) -> tuple[list[str], list[list[object]]]:
    """The columns and rows of a table, scores in percent with their intervals.

    Args:
        asked_for: for each record its model as it was asked for, which tells models of one name apart.
    """
    from cloob_cli.evaluation.results import metric_names

    names = metric_names(records)
    beside = any("published" in record for record in records)
    weights: dict[str, set[str]] = {}
    for record in records:
        weights.setdefault(record["model"], set()).add(record.get("settings", {}).get("weights_sha256", ""))
    rows: list[list[object]] = []
    for record, asked in zip(records, asked_for, strict=True):
        model = record["model"] if len(weights[record["model"]]) == 1 else f"{record['model']} ({asked})"
        cells: list[object] = [record["dataset"], model, record["task"], record.get("images")]
        for name in names:
            cells.append(_percent(record["metrics"].get(name), record.get("intervals", {}).get(name)))
        if beside:
            cells.append(_percent(record.get("published", {}).get("acc1"), None))
        rows.append(cells)
    columns = ["data set", "model", "task", "images", *(heading(name) for name in names)]
    return [*columns, "published top-1"] if beside else columns, rows


def _without_details(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in {"per_class", "confusions"}}


def heading(name: str) -> str:
    """The heading of a metric's column."""
    return _HEADINGS.get(name) or name.replace("_retrieval_recall@", " R@").replace("_", " ")


def _percent(value: float | None, interval: list[float] | None) -> str | None:
    if value is None:
        return None
    ends = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * value:.1f} %{ends}"


def _show_details(record: dict[str, Any]) -> None:
    if "per_class" not in record:
        return
    console.line("")
    rows = [(one["class"], one["images"], _percent(one["recall"], None)) for one in record["per_class"]]
    console.table([f"class of {record['dataset']}", "images", "right"], rows)
    if record["confusions"]:
        console.line("")
        confused = [(one["class"], one["predicted"], one["count"]) for one in record["confusions"][:_CONFUSIONS]]
        console.table(["class", "taken for", "images"], confused)
