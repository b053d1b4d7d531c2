"""`cloob eval`: models and data sets in, scores out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cloob_cli import console, launch, signals
from cloob_cli.commands import completion
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    ForceOption,
    HtmlOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    WorkersOption,
)
from cloob_cli.errors import Interrupted, UsageError


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Zoo name, model folder or hf://ORG/REPO[@REVISION].",
            autocompletion=completion.usable_models,
        ),
    ],
    datasets: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET",
            help="Folders with a subfolder for each class, CLIP_benchmark's webdatasets (also hf://ORG/REPO), parquet, "
            "CSV, folders of images with captions, or suites: a shipped one's name or a .toml file.",
            autocompletion=completion.suites,
        ),
    ],
    further: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="A further model; may be repeated.", autocompletion=completion.usable_models
        ),
    ] = None,
    task: Annotated[
        Literal["zero-shot", "retrieval", "linear-probe", "few-shot"] | None,
        typer.Option(help="What to measure.", show_default="zero-shot for labels, retrieval for captions"),
    ] = None,
    split: Annotated[str, typer.Option(help="The part of a data set that is scored.")] = "test",
    train_split: Annotated[str, typer.Option(help="The part that linear-probe and few-shot learn from.")] = "train",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            "-l",
            help="Texts of the classes, a line each, as for classify.",
            show_default="their names",
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="Prompt templates, one a line, with {c} or {}.", show_default="the data set's own"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="So many images of each data set, evenly spaced.", show_default="all")
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Samples for the 95 % confidence intervals; 0: no intervals.")
    ] = 1000,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Show each class and the most frequent confusions as well.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a .json or .csv file as well.")] = None,
    html: HtmlOption = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Keep what the .json file holds already, and measure the rest.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="The folder of the suites' local data sets.", show_default="below CLOOB_HOME"),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep embeddings and use kept ones.")] = True,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure models on data sets.

    By zero-shot classification, retrieval, and classifiers on the embeddings. The JSON result is a list of records
    in CLIP_benchmark's schema, fractions in [0, 1]. Intervals are those of a bootstrap over the images. In
    retrieval a wrong answer that is exactly as near as the right one counts as nearer. Embeddings are kept below
    CLOOB_HOME. Images that cannot be read and data sets of a suite that are not here are passed over; the exit code
    is then 3.
    """
    with signals.leaving_at_once():
        from cloob_cli.commands.eval_data import find_data_sets
        from cloob_cli.commands.eval_page import write_page
        from cloob_cli.commands.eval_run import Evaluations
        from cloob_cli.commands.html_report import check_html
        from cloob_cli.evaluation.evaluate import Asked
        from cloob_cli.inference.labels import read_labels, read_templates
        from cloob_cli.inference.output_paths import check_output

    console.configure(quiet=quiet or launch.rank() > 0)
    inputs = [path for path in (labels, templates) if path is not None]
    check_html(html, [*inputs, *(Path(name) for name in datasets)], force)
    if output is not None:
        check_output(output, "eval", [".json", ".csv"], inputs=inputs, force=force)
    if skip_existing and (output is None or output.suffix.lower() != ".json"):
        raise UsageError("--skip-existing needs the .json file of the earlier run", "name it with --output")
    asked = Asked(
        task=task,
        split=split,
        train_split=train_split,
        templates=read_templates(templates) if templates else None,
        labels=[(label.name, label.names) for label in read_labels(labels)] if labels else None,
        labels_file=str(labels),
        limit=limit,
        resamples=bootstrap,
    )
    # Everything that can be wrong with the input is found before a model is opened.
    found = find_data_sets(datasets, asked, data)
    work = Evaluations(
        output=output,
        skip_existing=skip_existing,
        details=per_class,
        page=html is not None,
        cache=cache,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
    )
    models = list(dict.fromkeys([model, *(further or [])]))
    try:
        work.run(models, found.jobs)
    except KeyboardInterrupt:
        done = f"interrupted after {len(work.records)} of {len(models) * len(found.jobs)} evaluations"
        kept = f"{output} holds those; --skip-existing goes on" if output and work.records else None
        raise Interrupted(done, kept or "embeddings of whole data sets are kept and will be used again") from None
    work.show(as_json)
    if output is not None and work.records:
        console.info(f"wrote {output}")
    if html is not None:
        write_page(html, work.detailed, found.jobs, models, workers)
    if work.failures or found.missing:
        raise typer.Exit(3)
