"""`cloob dedupe`: a folder in, groups of images that are there more than once out. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloob_cli import console, signals
from cloob_cli.commands.folder_index import current_folder_index
from cloob_cli.commands.index_run import IndexOptions
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    ExactOption,
    ForceOption,
    HtmlOption,
    JsonOption,
    MemoryBudgetOption,
    ModelOption,
    NoUpdateOption,
    PrecisionOption,
    QuietOption,
    RebuildOption,
    WorkersOption,
)
from cloob_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloob_cli.inference.duplicates.groups import Copy
    from cloob_cli.inference.index.reading import StoredIndex

_COLUMNS = ["group", "path", "match", "pixels", "bytes", "cosine", "bits"]


def dedupe(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of images, searched below.")],
    identical: Annotated[
        bool, typer.Option("--identical", help="Only files of the same bytes: no model and no index is needed.")
    ] = False,
    min_cosine: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="Least cosine between the embeddings of near duplicates.")
    ] = 0.93,
    max_bits: Annotated[
        int, typer.Option(min=0, max=64, help="Most bits, of 64, in which their perceptual hashes differ.")
    ] = 8,
    no_update: NoUpdateOption = False,
    rebuild: RebuildOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    exact: ExactOption = False,
    memory_budget: MemoryBudgetOption = None,
    html: HtmlOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find images that are there more than once.

    Nothing is deleted: the result is groups, the best copy of each first. Duplicates are files of the same bytes
    (`exact`), and images that look nearly the same (`near`): both the cosine of their embeddings and their
    perceptual hashes are close to those of the best copy, which has the most pixels, then the most bytes, then is
    the earliest. Links to one file count as one. The embeddings are those of the folder's index, which `cloob
    search` uses too. Images that cannot be read are skipped; the exit code is then 3.
    """
    console.configure(quiet=quiet)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder" if folder.exists() else f"no folder at {folder}")
    if identical and (no_update or rebuild):
        raise UsageError("--identical reads the files, and no index", "leave out --no-update and --rebuild")
    with signals.leaving_at_once():
        from cloob_cli.commands.html_report import check_html
        from cloob_cli.inference.duplicates.groups import Limits, duplicate_groups
        from cloob_cli.path_text import path_of

    check_html(html, [], force)
    skipped = 0
    path_of_name: Callable[[str], Path] = path_of
    if identical:
        index, skipped = _read_files(folder)
    else:
        options = IndexOptions(model, device, precision, "float32", batch_size, workers, exact, memory_budget, rebuild)
        files, updated = current_folder_index(folder, options, no_update=no_update)
        skipped = len(updated.failures) if updated else 0
        from cloob_cli.inference.index.reading import read_index

        index = read_index(files)
        path_of_name = lambda name: folder / path_of(name)  # noqa: E731
    with console.track("duplicates", unit="images", delay=0.5) as bar:
        groups = list(
            duplicate_groups(
                index,
                path_of_name,
                None if identical else Limits(min_cosine, max_bits),
                workers=workers,
                memory_budget=memory_budget,
                on_tile=lambda done, total: bar.note(f"{done:,} of {total:,} tiles of cosines"),
                on_image=lambda failure: bar.advance(),
            )
        )
    with console.ignore_closed_stdout() if html else nullcontext():  # the page is a result of its own
        _print(groups, as_json)
    if html is not None:
        _write_page(html, folder, groups, workers, memory_budget)
    further = sum(len(group) - 1 for group in groups)
    room = sum(copy.size for group in groups for copy in group[1:])
    console.info(f"groups: {len(groups):,}, images besides the best copies: {further:,}, {console.file_size(room)}")
    if skipped:
        raise typer.Exit(3)


def _read_files(folder: Path) -> tuple[StoredIndex, int]:
    """The files of equal size with the hashes of their bytes, and how many could not be read."""
    from cloob_cli.commands.inference_run import find_images
    from cloob_cli.inference.duplicates.groups import identical_index

    found = find_images([folder])
    failures = [one for one in found if not isinstance(one, Path)]
    with console.track("comparing files", unit="files", delay=0.5) as bar:
        index = identical_index([path for path in found if isinstance(path, Path)], failures.append, bar.advance)
    for failure in failures:
        console.warn(f"skipped {failure.name}: {failure.reason}")
    return index, len(failures)


def _write_page(
    page: Path, folder: Path, groups: Sequence[list[Copy]], workers: int | None, memory_budget: int | None
) -> None:
    """Write the groups as a page, each below a heading of its own."""
    from cloob_cli.commands.html_report import thumbnails_of, writing
    from cloob_cli.path_text import path_text
    from cloob_cli.report.gallery import Gallery, Item

    copies = [(number, copy, len(group)) for number, group in enumerate(groups, 1) for copy in group]
    facts = [("groups", f"{len(groups):,}"), ("images", f"{len(copies):,}")]
    gallery = Gallery(f"dedupe {path_text(folder)}", ["cosine", "bits"], sections=True, facts=facts)
    with writing(page, gallery) as add:
        small = thumbnails_of([copy.path for _, copy, _ in copies], workers, memory_budget)
        for (number, copy, count), thumbnail in zip(copies, small, strict=True):
            details = [
                ("match", copy.match),
                ("pixels", f"{copy.width} x {copy.height}"),
                ("size", str(console.file_size(copy.size))),
                ("sha256", copy.sha256),
            ]
            heading = f"{number}: {count} images"
            add(Item(path_text(copy.path), thumbnail, "", [copy.cosine, copy.bits], [], details, heading))


def _print(groups: Iterable[list[Copy]], as_json: bool) -> None:
    from cloob_cli.path_text import path_text

    if as_json:
        for group in groups:
            kind = "near" if any(copy.match == "near" for copy in group) else "exact"
            console.json_line({"kind": kind, "images": [copy.as_dict() for copy in group]})
        return
    rows = [
        [
            number,
            path_text(copy.path),
            copy.match,
            f"{copy.width}x{copy.height}",
            copy.size,
            None if copy.cosine is None else f"{copy.cosine:.4f}",
            copy.bits,
        ]
        for number, group in enumerate(groups, 1)
        for copy in group
    ]
    console.table(_COLUMNS, rows, dispensable=["bits", "cosine", "bytes"])
