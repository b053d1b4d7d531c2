"""`cloob embed`: images or texts in, embeddings as a NumPy array and its index as Parquet out."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
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
from cloob_cli.errors import NothingFoundError, UsageError

if TYPE_CHECKING:
    from cloob_cli.inference.embed import Written


def embed(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .npy file; the .parquet and .failures.jsonl go beside it.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders (searched below), images, or - for paths from stdin."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Embed the lines of this UTF-8 file instead of images.")] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="dtype of the stored embeddings.")] = "float32",
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    fast_jpeg: FastJpegOption = False,
    memory_budget: MemoryBudgetOption = None,
    exclude: ExcludeOption = None,
    null: NullOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn images or texts into embeddings of unit norm.

    Row i of the .npy file belongs to row i of the .parquet file, whose first column is `path` (or `text`) and whose
    metadata name the model, the sha256 of its weights, the preprocessing and the version. Images that cannot be
    read are listed and skipped; the exit code is then 3.
    """
    console.configure(quiet=quiet)
    if bool(images) == (text is not None):
        raise UsageError(
            "give either folders and images, or --text FILE", "cloob embed photos -o photos.npy, for example"
        )
    with signals.leaving_at_once():
        from cloob_cli.checkpoint.folder import weights_sha256
        from cloob_cli.commands.inference_run import (
            description,
            find_images,
            model_name,
            open_model,
            read_sources,
            track_work,
        )
        from cloob_cli.inference import embed as inference
        from cloob_cli.inference.labels import read_texts
        from cloob_cli.inference.output_files import check_output, failures_path, output_files
        from cloob_cli.inference.provenance import describe_images, describe_texts

    images = read_sources(images or [], null)
    check_output(output, "embed", [".npy"], inputs=[*images, *filter(None, [text])], force=force)
    # Everything that can be wrong with the input is found before the model is opened.
    paths = find_images(images, exclude or []) if images else []
    texts = read_texts(text) if text is not None else iter(())
    first = next(texts, None)
    if text is not None and first is None:
        raise NothingFoundError(f"{text} holds no text", "one text a line")
    opened, folder = open_model(model, device, precision)
    made_with = model_name(opened, folder), weights_sha256(folder)

    unit, total = ("texts", None) if first is not None else ("images", len(paths))
    with track_work("embed", total, unit, failures_path(output), output_files(output, "embed")) as work:
        if first is not None:
            metadata = describe_texts("embed", opened, *made_with, dtype=dtype)
            batches = inference.embed_texts(
                opened, chain([first], texts), batch_size=batch_size, on_text=lambda: work.read(None)
            )
        else:
            metadata = describe_images("embed", opened, *made_with, fast_jpeg=fast_jpeg, dtype=dtype)
            batches = inference.embed_images(
                opened,
                paths,
                batch_size=batch_size,
                workers=workers,
                fast_jpeg=fast_jpeg,
                memory_budget=memory_budget,
                on_image=work.read,
            )
        with closing(work.track(batches)) as rows:
            written = inference.write_embeddings(
                output,
                rows,
                width=opened.config.embed_dim,
                dtype=dtype,
                column="path" if text is None else "text",
                metadata=metadata,
            )
    _report(written, len(work.failures), as_json)
    if written.cut:
        context = opened.config.text.context_length
        console.warn(f"{written.cut} of {written.rows} texts are longer than the model's {context} tokens and were cut")
    work.tell_end("embedded", description(opened, folder))
    if work.failures:
        raise typer.Exit(3)


def _report(written: Written, skipped: int, as_json: bool) -> None:
    files = {"embeddings": written.embeddings, "index": written.index, "failures": written.failures}
    if as_json:
        paths = {name: path and str(path) for name, path in files.items()}
        console.json_document({**paths, "rows": written.rows, "skipped": skipped})
    else:
        for path in filter(None, files.values()):
            console.line(str(path))
