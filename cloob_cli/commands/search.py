"""`cloob search`: texts and images in, the images of a folder or of an embeddings file that are nearest to them out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloob_cli import console, signals
from cloob_cli.commands.folder_index import current_folder_index, model_of
from cloob_cli.commands.index_run import IndexOptions
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    ExactOption,
    FastJpegOption,
    ForceOption,
    HtmlOption,
    JsonOption,
    MemoryBudgetOption,
    ModelOption,
    NoUpdateOption,
    PrecisionOption,
    RebuildOption,
    WorkersOption,
)
from cloob_cli.commands.search_rows import find_nearest
from cloob_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloob_cli.core.model import CloobModel
    from cloob_cli.inference.index.files import IndexFiles
    from cloob_cli.inference.search.query import Part


def search(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of images, or an output of `embed`.")],
    query: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="Texts; TEXT:0.5 gives one a weight.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Search for what this image shows. May be repeated.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(metavar="Q", help="A further text or image. May be repeated.")
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option(metavar="Q", help="A text or image to lead away from. May be repeated.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    min_score: Annotated[float | None, typer.Option(help="Leave out results with a smaller cosine.")] = None,
    no_update: NoUpdateOption = False,
    compare_all: Annotated[
        bool, typer.Option("--compare-all", help="Compare all rows, also of more than 200,000.")
    ] = False,
    rebuild: RebuildOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    exact: ExactOption = False,
    fast_jpeg: FastJpegOption = False,
    memory_budget: MemoryBudgetOption = None,
    print0: Annotated[
        bool, typer.Option("--print0", "-0", help="Print paths only, each ended by a null character.")
    ] = False,
    html: HtmlOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print paths only, one a line, and no notices on stderr.")
    ] = False,
) -> None:
    """Find images by words and by other images.

    The images of a folder are embedded the first time; later only what is new or changed. That index is kept in
    SOURCE/.cloob, with relative paths, or below CLOOB_HOME where the folder cannot be written. The score is the
    cosine between an image and the weighted sum of all that is asked for. Images that cannot be read are skipped;
    the exit code is then 3.

    More than 200,000 rows are searched with an approximate index (extra `search`), whose recall is printed.
    """
    console.configure(quiet=quiet)
    if as_json and print0:
        raise UsageError("--json and --print0 exclude each other")
    with signals.leaving_at_once():
        from cloob_cli.commands.html_report import check_html
        from cloob_cli.inference.search.query import either_part, image_part, text_part

    parts = [
        *map(text_part, query or []),
        *map(image_part, image or []),
        *map(either_part, also or []),
        *(either_part(one, -1.0) for one in minus or []),
    ]
    if not any(part.weight > 0 for part in parts):
        raise UsageError("there is nothing to search for", 'cloob search photos "a red bicycle", for example')
    check_html(html, [source] if source.is_file() else [], force)
    options = IndexOptions(model, device, precision, "float32", batch_size, workers, exact, memory_budget, rebuild)
    skipped = 0
    opened: CloobModel | None = None
    embeddings = _embeddings_file(source)
    if embeddings is None:
        files, updated = current_folder_index(source, options, no_update=no_update)
        if updated:
            skipped, opened = len(updated.failures), updated.model
    elif no_update or rebuild:
        raise UsageError(
            f"{source} is not a folder of images", "--no-update and --rebuild are about the index of a folder"
        )
    else:
        files = embeddings
        compare_all = compare_all or files.form == "lance"  # whose rows are read into memory
    hits = _find(
        files,
        parts,
        options,
        opened,
        top,
        min_score,
        is_folder=embeddings is None,
        compare_all=compare_all,
        as_it_is=no_update,
    )
    # A folder's index has paths below it, a file of `embed` those that it was called with.
    base = source if embeddings is None else None
    found = [(_path(name, base), score) for name, score in hits]
    with console.ignore_closed_stdout() if html else nullcontext():  # the page is a result of its own
        _print(found, as_json, print0, quiet)
    if html is not None:
        _write_page(html, source, parts, found, workers, memory_budget)
    if not hits:
        console.info("no image has a score" + (f" of {min_score} or more" if min_score is not None else ""))
    if skipped:
        raise typer.Exit(3)


def _embeddings_file(source: Path) -> IndexFiles | None:
    """The files of embeddings that a source names; None where it is a folder of images."""
    from cloob_cli.inference.index.files import source_files

    if not source.exists():
        raise InputError(f"no folder or file at {source}")
    files = source_files(source)
    if files is None and not source.is_dir():
        raise InputError(f"{source} is neither a folder nor a .npy file of embeddings", "`cloob embed` makes one")
    return files


def _find(
    files: IndexFiles,
    parts: Sequence[Part],
    options: IndexOptions,
    opened: CloobModel | None,
    top: int,
    min_score: float | None,
    *,
    is_folder: bool,
    compare_all: bool,
    as_it_is: bool,
) -> list[tuple[str, float]]:
    """The names of the nearest images with their scores; the index is that of a folder, or an output of `embed`."""
    with signals.leaving_at_once():
        from cloob_cli.inference.index.given import open_given
        from cloob_cli.inference.index.stored import open_index
        from cloob_cli.inference.search.query import encode_query

    stored = open_index(files) if is_folder else open_given(files)
    opened = opened or model_of(stored.metadata, files.read_from, options, stored.rows.shape[1])
    query = encode_query(opened, parts, exact=stored.metadata.get("decoding") == "exact")
    hits = find_nearest(
        files.embeddings,
        stored.rows,
        query,
        opened,
        min(top, len(stored.rows)),
        min_score,
        compare_all=compare_all,
        as_it_is=as_it_is,
    )
    return [(stored.names[hit.row].as_py(), hit.score) for hit in hits]


def _path(name: str, base: Path | None) -> Path:
    from cloob_cli.path_text import path_of

    return base / path_of(name) if base else path_of(name)


def _write_page(
    page: Path,
    source: Path,
    parts: Sequence[Part],
    hits: Sequence[tuple[Path, float]],
    workers: int | None,
    memory_budget: int | None,
) -> None:
    """Write the images that were found as a page, best first."""
    from cloob_cli.commands.html_report import thumbnails_of, writing
    from cloob_cli.path_text import path_text
    from cloob_cli.report.gallery import Gallery, Item

    asked = [path_text(part.content) if isinstance(part.content, Path) else part.content for part in parts]
    weights = [f"{part.weight:g}" for part in parts]
    facts = [("searched", path_text(source)), *((f"weight {w}", what) for w, what in zip(weights, asked, strict=True))]
    with writing(page, Gallery(f"search {path_text(source)}", ["cosine"], facts=facts)) as add:
        small = thumbnails_of([path for path, _ in hits], workers, memory_budget)
        for (path, score), thumbnail in zip(hits, small, strict=True):
            add(Item(path_text(path), thumbnail, "", [score]))


def _print(hits: Sequence[tuple[Path, float]], as_json: bool, print0: bool, quiet: bool) -> None:
    from cloob_cli.path_text import path_text

    if as_json:
        for path, score in hits:
            console.json_line({"path": path_text(path), "score": score})
    elif print0 or quiet:
        for path, _ in hits:
            console.line(str(path), end="\0" if print0 else "\n")
    else:
        console.table(["path", "score"], [(path_text(path), f"{score:z.4f}") for path, score in hits])
