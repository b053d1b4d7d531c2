"""`cloob embed`: images or texts in, embeddings and the index that names them out."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cloob_cli import console, launch, signals
from cloob_cli.commands.embed_processes import follow, leading, own_options
from cloob_cli.commands.embed_ray import RayOptions, embed_on_ray
from cloob_cli.commands.index_run import IndexOptions, index_lock, update_index
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    ExactOption,
    ExcludeOption,
    FastJpegOption,
    ForceOption,
    JsonOption,
    MemoryBudgetOption,
    ModelOption,
    NullOption,
    PrecisionOption,
    QuietOption,
    RebuildOption,
    WorkersOption,
)
from cloob_cli.errors import NothingFoundError, UsageError
from cloob_cli.text_format import counted, told_cut

if TYPE_CHECKING:
    from cloob_cli.inference.index.files import Form, IndexFiles


def embed(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The .npy file; the .parquet and .failures.jsonl go beside it. Or see --format, --layout.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            help="Folders (searched below), images, or - for paths from stdin. With --engine ray also .tar and "
            ".parquet files, s3://... and hf://...",
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Embed the lines of this UTF-8 file instead of images.")] = None,
    format_: Annotated[
        Literal["npy", "lance"] | None,
        typer.Option(
            "--format",
            help="Form of the output: a .npy file, or a Lance table (a folder NAME.lance).",
            show_default="by the suffix of --output",
        ),
    ] = None,
    layout: Annotated[
        Literal["plain", "clip-retrieval"],
        typer.Option(help="clip-retrieval: --output is a folder, with img_emb/, text_emb/ and metadata/."),
    ] = "plain",
    dtype: Annotated[
        Literal["float32", "float16"] | None,
        typer.Option(
            help="dtype of the stored embeddings.", show_default="float32; float16 in clip-retrieval's layout"
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
    rebuild: RebuildOption = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: on the Ray cluster at RAY_ADDRESS, or on this machine; -o is a .parquet or .lance then."
        ),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --engine ray: copies of the model at work.", show_default="one a GPU, or one a machine"
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --engine ray: the column of Parquet files that holds the images.",
            show_default="image, or another usual name",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn images or texts into embeddings.

    They have unit norm. Row i of the .npy file belongs to row i of the .parquet file, whose first column is `path`
    (or `text`) and whose metadata name the model, the sha256 of its weights, the preprocessing and the version.
    Images that cannot be read are listed and skipped; the exit code is then 3.

    Where the output is there already, only images that are new or changed are embedded, and those that are gone are
    dropped. A run that was stopped or killed goes on with the same command.

    In clip-retrieval's layout NAME.txt beside NAME.jpg is the image's caption, which is embedded too.
    """
    console.configure(quiet=quiet or launch.rank() > 0)
    if bool(images) == (text is not None):
        raise UsageError(
            "give either folders and images, or --text FILE", "cloob embed photos -o photos.npy, for example"
        )
    dtype = dtype or ("float16" if layout == "clip-retrieval" else "float32")
    options = IndexOptions(model, device, precision, dtype, batch_size, workers, exact, memory_budget, rebuild=rebuild)
    if engine == "ray":
        _check_ray_options(text, null, rebuild)
        if format_ or layout != "plain":
            raise UsageError("--engine ray writes NAME.parquet or NAME.lance", "leave --format and --layout out")
        on_ray = embed_on_ray(
            output, images or [], options, RayOptions(actors, image_column), exclude=exclude or [], force=force
        )
        _report(on_ray.output, on_ray.output, on_ray.listing, on_ray.rows, on_ray.skipped, as_json)
        if on_ray.skipped:
            raise typer.Exit(3)
        return
    if actors is not None or image_column is not None:
        option = "--actors" if actors is not None else "--image-column"
        raise UsageError(f"{option} is an option of --engine ray", "add --engine ray, or leave it out")
    with signals.leaving_at_once():
        from cloob_cli.atomic_files import remove_abandoned
        from cloob_cli.commands.inference_run import find_images, read_sources
        from cloob_cli.inference.index.files import IndexFiles
        from cloob_cli.inference.index.output_place import check_index_place, is_own

    files = IndexFiles.of(output, _form(output, format_, layout, is_text=text is not None), texts=text is not None)
    if launch.rank() > 0:
        if text is None:
            follow(own_options(options))
        return
    images = read_sources(images or [], null)
    remove_abandoned(*files.folders)  # and let a run that was killed between two renames have its last files
    check_index_place(output, files, [*images, *filter(None, [text])], force=force)
    # Everything that can be wrong with the input is found before the model is opened.
    if text is not None:
        _embed_texts(
            files,
            text,
            dtype=dtype,
            model=model,
            device=device,
            precision=precision,
            batch_size=batch_size,
            as_json=as_json,
        )
        return
    options = replace(options, rebuild=rebuild or (force and not is_own(output, files)))
    with leading() as helpers, index_lock(files):
        paths = find_images(images, exclude or [])
        updated = update_index(files, paths, own_options(options), helpers=helpers)
    failures = files.failures if updated.failures else None
    captions = {"captions": files.beside if files.beside and files.beside.exists() else None}
    further = captions if files.has_captions else {}
    _report(files.embeddings, files.index, failures, updated.rows, len(updated.failures), as_json, **further)
    if updated.failures and not launch.is_launched():
        raise typer.Exit(3)


def _form(output: Path, chosen: str | None, layout: str, *, is_text: bool) -> Form:
    """The form of the output, as the options say or its suffix.

    Args:
        is_text: texts are embedded, which a cluster does not do.

    Raises:
        UsageError: these do not fit together.
    """
    from cloob_cli.inference.index.files import LANCE

    suffix = output.suffix.lower()
    if layout == "clip-retrieval":
        if chosen == "lance":
            raise UsageError("--layout clip-retrieval has .npy files, not --format lance", "leave out one of them")
        return "clip-retrieval"
    if chosen == "lance" and suffix != LANCE:
        raise UsageError(f"a Lance table is a folder NAME.lance, not '{output.name}'", f"-o {output.stem}.lance")
    if chosen == "npy" and suffix == LANCE:
        raise UsageError(f"'{output.name}' is a Lance table, not --format npy", "leave out --format")
    if suffix == ".parquet" and not is_text:
        raise UsageError(
            f"cannot write '{output.name}': one .parquet file for all is an output of --engine ray",
            f"use one of: .npy {LANCE}; or add --engine ray",
        )
    return "lance" if suffix == LANCE else "npy"


def _embed_texts(
    files: IndexFiles,
    text: Path,
    *,
    dtype: str,
    model: str | None,
    device: str | None,
    precision: str | None,
    batch_size: int,
    as_json: bool,
) -> None:
    with signals.leaving_at_once():
        from cloob_cli.checkpoint.folder import weights_sha256
        from cloob_cli.commands.inference_run import model_name, open_model, track_work
        from cloob_cli.inference import embed as inference
        from cloob_cli.inference.labels import read_texts
        from cloob_cli.inference.provenance import describe_texts

    texts = read_texts(text)
    first = next(texts, None)
    if first is None:
        raise NothingFoundError(f"{text} holds no text", "one text a line")
    opened, folder = open_model(model, device, precision)
    metadata = describe_texts("embed", opened, model_name(opened, folder), weights_sha256(folder), dtype=dtype)
    with track_work("embed", None, "texts", files.failures, files.all) as work:
        batches = inference.embed_texts(
            opened, chain([first], texts), batch_size=batch_size, on_text=lambda: work.read(None)
        )
        with closing(work.track(batches)) as rows:
            written = inference.write_embeddings(files, rows, dtype=dtype, metadata=metadata)
    _report(files.embeddings, files.index, None, written.rows, 0, as_json)
    if written.cut:
        which = f"{written.cut:,} of {counted(written.rows, 'text')}"
        console.warn(told_cut(written.cut, which, opened.config.text.context_length))
    work.tell_end("embedded")


def _check_ray_options(text: Path | None, null: bool, rebuild: bool) -> None:
    """Refuse options that a run on a cluster does not have.

    Raises:
        UsageError: one is given, or a launcher started this process.
    """
    if text is not None:
        raise UsageError("--engine ray embeds images, not --text", "leave --engine ray out: texts take little time")
    if null:
        raise UsageError("--engine ray does not read paths from standard input (--null)", "give folders or files")
    if rebuild:
        raise UsageError("--engine ray always embeds all images", "leave --rebuild out")
    if launch.count() > 1:
        raise UsageError("--engine ray starts its own processes", "run it without accelerate launch")


def _report(
    embeddings: Path, index: Path, failures: Path | None, rows: int, skipped: int, as_json: bool, **further: Path | None
) -> None:
    files = {"embeddings": embeddings, "index": index, "failures": failures, **further}
    if as_json:
        paths = {name: path and str(path) for name, path in files.items()}
        console.json_document({**paths, "rows": rows, "skipped": skipped})
    else:
        for path in dict.fromkeys(filter(None, files.values())):
            console.line(str(path))
