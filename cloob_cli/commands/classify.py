"""`cloob classify`: pictures in, the label that fits each best out."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloob_cli import console
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    FastJpegOption,
    ForceOption,
    JsonOption,
    MemoryBudgetOption,
    ModelOption,
    PrecisionOption,
    QuietOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cloob_cli.commands.pictures import Skipped
    from cloob_cli.inference.classify import Classified, ClassifiedBatch


def classify(
    pictures: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders (searched below) and pictures.")],
    labels: Annotated[
        Path,
        typer.Option("--labels", "-l", help="One label a line; `label: synonym | synonym`; `#` starts a comment."),
    ],
    templates: Annotated[
        Path | None,
        typer.Option(help="Prompt templates, one a line, with {c} or {}.", show_default="the model's own"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels a picture, best first.")] = 1,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    fast_jpeg: FastJpegOption = False,
    memory_budget: MemoryBudgetOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a .csv, .jsonl or .parquet file instead.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Label pictures with your own words, without training.

    A row a picture: its path, the best label, its probability, which is softmax(inv_tau · cosine) over all labels,
    and the cosine. Pictures that cannot be read are listed and skipped; the exit code is then 3.
    """
    console.configure(quiet=quiet)
    from cloob_cli.commands.pictures import Skipped, followed, model_name, open_model, report_passed_over
    from cloob_cli.inference import classify as inference
    from cloob_cli.inference.existing import check_output, failures_path
    from cloob_cli.inference.labels import DEFAULT_TEMPLATES, read_labels, read_templates
    from cloob_cli.inference.provenance import describe_images
    from cloob_cli.inference.reading import collect_images
    from cloob_cli.registry.store import weights_sha256

    # Everything that can be wrong with the input is found before the model is opened.
    if output is not None:
        inputs = [labels, *filter(None, [templates]), *pictures]
        check_output(output, "classify", inference.OUTPUT_SUFFIXES, inputs=inputs, force=force)
    classes = read_labels(labels)
    prompts = read_templates(templates) if templates else None
    found = collect_images(pictures)
    paths = found.items
    report_passed_over(found.passed_over)
    opened, folder = open_model(model, device, precision)
    top_k = min(top_k, len(classes))

    skipped = Skipped(failures_path(output) if output else None)
    prompts = prompts or opened.config.templates or list(DEFAULT_TEMPLATES)
    batches = inference.classify(
        opened,
        paths,
        classes,
        prompts,
        top_k=top_k,
        batch_size=batch_size,
        workers=workers,
        fast_jpeg=fast_jpeg,
    )
    with closing(followed(batches, skipped, "classify", len(paths), "pictures", rows_follow=as_json)) as work:
        if output is None:
            _show(_rows(work), top_k, as_json)
        else:
            made_with = model_name(opened, folder), weights_sha256(folder)
            metadata = describe_images(
                "classify", opened, *made_with, fast_jpeg=fast_jpeg, templates=json.dumps(prompts)
            )
            _write(output, work, top_k, skipped, as_json, metadata)
            console.talk(f"wrote {output}")
    skipped.summarise()
    if skipped.failures:
        raise typer.Exit(3)


def _rows(batches: Iterable[ClassifiedBatch]) -> Iterator[Classified]:
    return (row for batch in batches for row in batch.rows)


def _show(rows: Iterator[Classified], top_k: int, as_json: bool) -> None:
    from cloob_cli.inference.classify import columns

    if as_json:
        for row in rows:
            console.json_line(row.as_dict())
    else:
        first = next(rows)  # an error comes before the header
        console.table(columns(top_k), (_cells(row) for row in chain([first], rows)))


def _cells(row: Classified) -> list[str]:
    return [f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row.as_row()]


def _write(
    output: Path,
    batches: Iterable[ClassifiedBatch],
    top_k: int,
    skipped: Skipped,
    as_json: bool,
    metadata: dict[str, str],
) -> None:
    from cloob_cli.files import replacing_together
    from cloob_cli.inference.classify import open_rows
    from cloob_cli.inference.existing import output_files
    from cloob_cli.inference.outputs import write_failures

    with replacing_together(output_files(output, "classify")) as [file, listing]:
        with open_rows(file, output.suffix.lower(), top_k, metadata) as write:
            for batch in batches:
                write(batch.rows)
                if as_json:
                    for row in batch.rows:
                        console.json_line(row.as_dict())
        write_failures(listing, skipped.failures)
