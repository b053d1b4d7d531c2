"""`cloob classify`: images in, the label that fits each best out."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cloob_cli import console, signals
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    ExcludeOption,
    FastJpegOption,
    ForceOption,
    JsonOption,
    MemoryBudgetOption,
    ModelOption,
    NullOption,
    PrecisionOption,
    QuietOption,
    WorkersOption,
)
from cloob_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cloob_cli.commands.classify_filing import Apply
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.errors import Failure
    from cloob_cli.filing.filing import LabelPath
    from cloob_cli.inference.classify import Classified, ClassifiedBatch
    from cloob_cli.inference.labels import Label
    from cloob_cli.inference.tokens import LabelTokens

    AddRows = Callable[[Iterable[Classified]], None]

_GROUPS = 5  # groups of labels with equal tokens that are named in warnings


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Folders (searched below), images, or - for paths from stdin."),
    ],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", "-l", help="One label a line; `label: synonym | synonym`; `#` starts a comment."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="One more label, written like a line of that file. May be repeated."),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="Prompt templates, one a line, with {c} or {}.", show_default="the model's own"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels for each image, best first.")] = 1,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    fast_jpeg: FastJpegOption = False,
    memory_budget: MemoryBudgetOption = None,
    exclude: ExcludeOption = None,
    null: NullOption = False,
    sort_into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put each image into the folder of its label below DIR; never overwrites."),
    ] = None,
    sort_mode: Annotated[
        Literal["copy", "hardlink", "symlink", "move"], typer.Option(help="How --sort-into puts images there.")
    ] = "copy",
    xmp: Annotated[
        bool, typer.Option("--xmp", help="Add the label to the keywords in NAME.xmp; images are not touched.")
    ] = False,
    undo_file: Annotated[
        Path | None,
        typer.Option(
            help="What --sort-into and --xmp did, for `cloob undo`.", show_default="cloob-undo-TIME.jsonl in the folder"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a .csv, .jsonl or .parquet file instead.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Label images with your own words, without training.

    The result has one row for each image: its path, the best label, its probability (softmax(inv_tau · cosine) over
    all labels) and the cosine. Images that cannot be read are listed and skipped; the exit code is then 3.
    """
    console.configure(quiet=quiet)
    if labels is None and not label:
        raise UsageError("no labels", "--labels FILE, or --label TEXT for each")
    with signals.leaving_at_once():
        from cloob_cli.checkpoint.folder import weights_sha256
        from cloob_cli.commands.classify_filing import FilingOptions, filing
        from cloob_cli.commands.inference_run import (
            description,
            find_images,
            model_name,
            open_model,
            read_sources,
            track_work,
        )
        from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES
        from cloob_cli.inference import classify as inference
        from cloob_cli.inference.labels import read_labels, read_templates
        from cloob_cli.inference.output_files import check_output, failures_path, output_files
        from cloob_cli.inference.provenance import describe_images
        from cloob_cli.inference.tokens import label_tokens

    # Everything that can be wrong with the input is found before the model is opened.
    images = read_sources(images, null)
    to_file = FilingOptions(sort_into, sort_mode, xmp, undo_file)
    to_file.check(images)
    if output is not None:
        inputs = [*filter(None, [labels, templates]), *images]
        check_output(output, "classify", inference.OUTPUT_SUFFIXES, inputs=inputs, force=force)
    classes = read_labels(labels, label or [])
    prompts = read_templates(templates) if templates else None
    paths = find_images(images, exclude or [])
    opened, folder = open_model(model, device, precision)
    top_k = min(top_k, len(classes))
    further = ["sorted_to"] if sort_into is not None else []

    prompts = prompts or opened.config.templates or list(DEFAULT_TEMPLATES)
    _report_tokens(label_tokens(opened, classes, prompts), opened.config.text.context_length)
    files = output_files(output, "classify") if output else []
    listing = failures_path(output) if output else None
    label_paths: dict[str, LabelPath] = {one.name: (one.name,) for one in classes}

    def labels_of(row: Classified) -> tuple[list[LabelPath], list[LabelPath]]:
        found = [label_paths[row.top[0].label]]
        return found, found

    with (
        track_work("classify", len(paths), "images", listing, files) as work,
        filing(to_file, images, label_paths.values(), labels_of, work) as apply,
    ):
        batches = inference.classify(
            opened,
            paths,
            classes,
            prompts,
            top_k=top_k,
            batch_size=batch_size,
            workers=workers,
            fast_jpeg=fast_jpeg,
            memory_budget=memory_budget,
            on_image=work.read,
            on_texts=lambda done, total: work.prepared("label texts", done, total),
        )
        with closing(work.track(batches)) as tracked:
            rows = _apply(tracked, apply)
            if output is None:
                _show(rows, _printer(as_json, top_k, paths, classes))
            else:
                made_with = model_name(opened, folder), weights_sha256(folder)
                metadata = describe_images(
                    "classify", opened, *made_with, fast_jpeg=fast_jpeg, templates=json.dumps(prompts)
                )
                _write(output, rows, top_k, work, as_json, metadata, further)
    if output is not None:
        console.info(f"wrote {output}")
    work.tell_end("classified", description(opened, folder))
    if work.failures:
        raise typer.Exit(3)


def _apply(batches: Iterable[ClassifiedBatch], apply: Apply) -> Iterator[ClassifiedBatch]:
    for batch in batches:
        batch.rows = apply(batch.rows)
        yield batch


def _report_tokens(found: LabelTokens, context: int) -> None:
    for names in found.alike[:_GROUPS]:
        shown = ", ".join(f"'{name}'" for name in names)
        console.warn(f"the model cannot tell these labels apart, as they have the same tokens: {shown}")
    if len(found.alike) > _GROUPS:
        console.warn(f"{len(found.alike) - _GROUPS} more groups of labels have the same tokens")
    if found.cut:
        texts = f"{found.cut} of {found.texts} label texts"
        console.warn(f"{texts} are longer than the model's {context} tokens and were cut")


def _printer(as_json: bool, top_k: int, paths: Sequence[Path | Failure], classes: Sequence[Label]) -> AddRows:
    """Return the function that shows rows on stdout."""
    from cloob_cli.inference.classify import columns
    from cloob_cli.path_text import path_text

    if as_json:
        return _print_json
    keys = (path_text(path) for path in paths if isinstance(path, Path))
    add = console.growing_table(columns(top_k), 3, keys, (one.name for one in classes))
    return lambda rows: add(_cells(row) for row in rows)


def _print_json(rows: Iterable[Classified]) -> None:
    for row in rows:
        console.json_line(row.as_dict())
    console.flush()


def _show(batches: Iterable[ClassifiedBatch], add: AddRows) -> None:
    for batch in batches:
        with signals.held_back():  # half a batch printed could be printed twice
            add(batch.rows)


def _cells(row: Classified) -> list[str]:
    choices = [value for choice in row.top for value in choice.as_dict().values()]
    return [f"{cell:.4f}" if isinstance(cell, float) else cell for cell in [row.path, *choices]]


def _write(
    output: Path,
    batches: Iterable[ClassifiedBatch],
    top_k: int,
    work: Work,
    as_json: bool,
    metadata: dict[str, str],
    further: Sequence[str],
) -> None:
    from cloob_cli.files import replacing_together
    from cloob_cli.inference.classify import open_rows
    from cloob_cli.inference.output_files import output_files
    from cloob_cli.inference.outputs import write_failures

    with replacing_together(output_files(output, "classify")) as [file, listing]:
        with open_rows(file, output.suffix.lower(), top_k, metadata, further) as write:
            for batch in batches:
                write(batch.rows)
                if as_json:
                    # The file is the result: it is finished also where nobody reads stdout any more.
                    with console.ignore_closed_stdout():
                        _print_json(batch.rows)
        write_failures(listing, work.failures)
