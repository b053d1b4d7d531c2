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
    ExactOption,
    ExcludeOption,
    FastJpegOption,
    ForceOption,
    HtmlOption,
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
    from collections.abc import Iterable, Iterator

    from cloob_cli.commands.classify_filing import Apply
    from cloob_cli.inference.classify import ClassifiedBatch


def classify(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders (searched below), images, or - for paths from stdin."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", "-l", help="One label a line; `label: synonym | synonym`; `#` starts a comment."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="One more label, written like a line of the --labels file. May be repeated."),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="Prompt templates, one a line, with {c} or {}.", show_default="the model's own"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels for each image, best first.")] = 1,
    unknown: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Give this label to images that belong to none; adds the column rejection."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Largest rejection score of a known image; with --multi-label least probability of a label."),
    ] = None,
    rejection: Annotated[
        Literal["energy", "cosine", "softmax", "empty"] | None,
        typer.Option(help="The score that --unknown decides by.", show_default="energy"),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --unknown: known is what is like these embeddings (an output of `embed`)."
        ),
    ] = None,
    multi_label: Annotated[
        bool,
        typer.Option(
            "--multi-label",
            help="Give every label that is likely by itself, not only the best; adds the column labels.",
        ),
    ] = False,
    sure: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Of labels in a tree: below this probability an ancestor answers.", show_default="0.5"
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of example images for each label; without --labels they name them."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead of classifying, fit answers to labeled images: a folder a label."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file that --calibrate writes, and classifying uses.")
    ] = None,
    conformal: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="COVERAGE", help="With --calibrate: sets that hold the right label this often."
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    exact: ExactOption = False,
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
    html: HtmlOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Label images with your own words.

    Nothing is trained. The result has one row for each image: its path, the best label, its probability
    (softmax(inv_tau · cosine) over all labels) and the cosine. Images that cannot be read are listed and skipped;
    the exit code is then 3. docs/answers.md says what answers there are besides the best label, and how far they
    can be trusted.
    """
    console.configure(quiet=quiet)
    if labels is None and not label and examples is None:
        raise UsageError("no labels", "--labels FILE, or --label TEXT for each")
    fitted = (calibration or output) if calibrate is not None else None
    if calibrate is not None and (images or fitted is None):
        raise UsageError(
            "--calibrate takes no DIR to classify, and needs --calibration FILE to write",
            "calibrate first, then classify with --calibration FILE",
        )
    if calibrate is not None and (sort_into is not None or xmp):
        raise UsageError("--calibrate files no images", "classify with --calibration FILE to do that")
    if calibrate is None and conformal is not None:
        raise UsageError("--conformal is for --calibrate", "a calibration file brings its sets with it")
    if calibrate is None and not images:
        raise UsageError("no DIR to classify")
    with signals.leaving_at_once():
        from cloob_cli.checkpoint.folder import weights_sha256
        from cloob_cli.commands.classify_answers import RuleOptions, filed_under, label_paths
        from cloob_cli.commands.classify_calibration_summary import show_calibration
        from cloob_cli.commands.classify_filing import FilingOptions, filing
        from cloob_cli.commands.classify_results import printer, report_tokens, show, write
        from cloob_cli.commands.classify_scorer import (
            Decoding,
            build_scorer,
            embed_labeled,
            fingerprint,
            known_patterns,
            read_examples,
        )
        from cloob_cli.commands.html_report import CHOICES, check_html, classify_page
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
        from cloob_cli.inference.answers import Answers, further_names, stored_threshold
        from cloob_cli.inference.calibration import Setup, check, fit, read
        from cloob_cli.inference.calibration import write as write_calibration
        from cloob_cli.inference.labeled_images import labels_of_folder
        from cloob_cli.inference.labels import read_labels, read_templates
        from cloob_cli.inference.output_paths import check_output, check_place, failures_path, output_files
        from cloob_cli.inference.provenance import describe_images
        from cloob_cli.inference.result_rows import OUTPUT_SUFFIXES
        from cloob_cli.inference.text_checks import label_tokens
        from cloob_cli.version import __version__

        if reference is not None:
            from cloob_cli.inference.reference_patterns import reference_sha256

    # Everything that can be wrong with the input is found before the model is opened.
    images = read_sources(images or [], null)
    to_file = FilingOptions(sort_into, sort_mode, xmp, undo_file)
    to_file.check(images)
    inputs = [*filter(None, [labels, templates, reference, examples, calibrate]), *images]
    if fitted is not None and html is not None:
        raise UsageError("--html is for labeled images, which --calibrate does not give", "leave one of them out")
    check_html(html, [*inputs, *filter(None, [calibration])], force)
    if fitted is not None:
        check_place(fitted, inputs, force)
    elif output is not None:
        check_output(output, "classify", OUTPUT_SUFFIXES, inputs=[*inputs, *filter(None, [calibration])], force=force)
    if examples is not None and labels is None and not label:
        classes = labels_of_folder(examples)
    else:
        classes = read_labels(labels, label or [])
    options = RuleOptions(unknown, rejection, threshold, reference, multi_label, sure, calibration, fitted is not None)
    options.check(classes)
    to_file.check_labels(multi_label)
    prompts = read_templates(templates) if templates else None
    known = read_examples(examples, classes, "--examples") if examples else None
    if known is not None and multi_label:
        raise UsageError("--examples compares labels with each other", "without --multi-label")
    labeled = read_examples(calibrate, classes, "--calibrate") if calibrate else None
    before = read(calibration) if calibration and fitted is None else None
    paths = find_images(images, exclude or []) if labeled is None else labeled.paths
    opened, folder = open_model(model, device, precision)
    top_k = min(top_k, len(classes))
    made_with = model_name(opened, folder), weights_sha256(folder)
    prompts = prompts or opened.config.templates or list(DEFAULT_TEMPLATES)
    report_tokens(label_tokens(opened, classes, prompts), opened.config.text.context_length)
    metadata = describe_images("classify", opened, *made_with, exact=exact, templates=json.dumps(prompts))
    stored = known_patterns(reference, metadata, opened) if reference else None
    setup = Setup(
        weights_sha256=made_with[1],
        labels=[list(one.names) for one in classes],
        templates=prompts,
        examples=fingerprint(known) if known else None,
        reference=reference_sha256(reference) if reference else None,
    )
    if calibration is not None and before is not None:
        check(calibration, before, setup)
    decoding = Decoding(batch_size, workers, exact, memory_budget)
    files = [*(output_files(output, "classify") if output else []), *filter(None, [html])]
    listing = failures_path(output) if output else None
    names = label_paths(classes, unknown)

    with (
        track_work("classify", len(paths), "images", listing, files) as work,
        filing(
            to_file, images, names.values(), lambda row: filed_under(row, names, unknown, multi_label), work
        ) as apply,
    ):
        scorer, patterns = build_scorer(opened, made_with[1], classes, prompts, known, decoding, work)
        patterns, first = (patterns, len(classes)) if stored is None else (stored, 0)
        usual = None
        if len(patterns) > first and unknown is not None and before is None:
            usual = stored_threshold(patterns, first, rejection or "energy", opened.config.inv_tau)
        rules = options.rules(made_with[0], before, usual)
        further = [*further_names(rules, classes), *(["sorted_to"] if sort_into is not None else [])]
        answers = Answers(classes, rules, patterns, opened.config.inv_tau)
        if labeled is not None and fitted is not None:
            rows, numbers = embed_labeled(opened, labeled, decoding, work.read)
            result = fit(
                rows,
                numbers,
                scorer,
                answers,
                rejection=rules.rejection,
                coverage=conformal,
                setup=setup,
                model=made_with[0],
                made_by=f"cloob {__version__}",
            )
            write_calibration(fitted, result)
            show_calibration(result, fitted, as_json)
            raise typer.Exit(3 if work.failures else 0)
        batches = inference.classify(
            opened,
            paths,
            scorer,
            answers,
            top_k=top_k if html is None else max(top_k, min(CHOICES, len(classes))),
            batch_size=batch_size,
            workers=workers,
            exact=exact,
            memory_budget=memory_budget,
            on_image=work.read,
            with_thumbnails=html is not None,
        )
        facts = [("model", description(opened, folder)), ("prompt templates", " | ".join(prompts))]
        moved = sort_into is not None and sort_mode == "move"
        with (
            closing(work.track(batches)) as tracked,
            classify_page(html, images, names, further, facts, top_k=top_k, moved=moved) as put_on_page,
        ):
            batches_done = put_on_page(_apply(tracked, apply))
            if output is None:
                show(batches_done, printer(as_json, top_k, paths, names, further), to_the_end=html is not None)
            else:
                write(output, batches_done, top_k, work, as_json, metadata, further)
    if output is not None:
        console.info(f"wrote {output}")
    work.tell_end("classified")
    if work.failures:
        raise typer.Exit(3)


def _apply(batches: Iterable[ClassifiedBatch], apply: Apply) -> Iterator[ClassifiedBatch]:
    for batch in batches:
        batch.rows = apply(batch.rows)
        yield batch
