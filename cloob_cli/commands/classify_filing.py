"""Filing for `cloob classify`: `--sort-into` and `--xmp`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console, signals
from cloob_cli.errors import Failure, UsageError
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.filing.filing import Filer, LabelPath
    from cloob_cli.filing.undo_file import Mode
    from cloob_cli.inference.result_rows import Classified


@dataclass(frozen=True)
class FilingOptions:
    """The options of the command line that are about filing."""

    sort_into: Path | None
    mode: Mode
    xmp: bool
    undo_file: Path | None

    @property
    def asked(self) -> bool:
        return self.sort_into is not None or self.xmp

    def check(self, sources: Sequence[Path]) -> None:
        """Refuse what cannot be done before any work.

        Raises:
            UsageError: a target within a source, or where nothing can be written; an undo file without anything to
                undo, or one that is there already.
        """
        from cloob_cli.inference.output_paths import check_place_of

        if self.sort_into is not None:
            from cloob_cli.filing.filing import refuse_nested

            refuse_nested(self.sort_into, sources)
            check_place_of(self.sort_into, "--sort-into", is_folder=True)
        if self.undo_file is not None and not self.asked:
            raise UsageError("--undo-file is for --sort-into and --xmp")
        if self.undo_file is not None:
            check_place_of(self.undo_file, "--undo-file")
            if os.path.lexists(self.undo_file):  # under another name a script would undo with the wrong one
                raise UsageError(f"{self.undo_file} exists already", "choose another --undo-file")

    def check_labels(self, several: bool) -> None:
        """Refuse to move an image into several folders.

        Raises:
            UsageError: that.
        """
        if several and self.sort_into is not None and self.mode == "move":
            raise UsageError("--multi-label has no single folder to move an image to", "--sort-mode hardlink, say")


Apply = Callable[[list["Classified"]], list["Classified"]]


@contextmanager
def filing(
    options: FilingOptions,
    sources: Sequence[Path],
    label_paths: Iterable[LabelPath],
    labels_of: Callable[[Classified], tuple[list[LabelPath], list[LabelPath]]],
    work: Work,
) -> Iterator[Apply]:
    """Yield the function that files the images of rows and returns the rows with their new places.

    Args:
        sources: what was searched for images; the undo file of `--xmp` alone goes into the first.
        label_paths: every label that images may be sorted to.
        labels_of: the labels of a row: those of its folders, and those that become keywords.
        work: gets the images that could not be filed.
    """
    if not options.asked:
        yield lambda rows: rows
        return
    from cloob_cli.filing.filing import Filer
    from cloob_cli.filing.folder_names import folder_names
    from cloob_cli.filing.undo_file import UndoFile

    with UndoFile(options.undo_file or _undo_file(options, sources)) as undo:
        filer = Filer(options.sort_into, options.mode, folder_names(label_paths), undo)
        try:
            yield lambda rows: _file(filer, options, rows, labels_of, work)
        finally:
            _tell(filer, undo.path)


def _undo_file(options: FilingOptions, sources: Sequence[Path]) -> Path:
    first = sources[0]
    folder = options.sort_into or (first if first.is_dir() else first.parent)
    return folder / f"cloob-undo-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"


def _file(
    filer: Filer,
    options: FilingOptions,
    rows: list[Classified],
    labels_of: Callable[[Classified], tuple[list[LabelPath], list[LabelPath]]],
    work: Work,
) -> list[Classified]:
    from cloob_cli.filing.filing import ToFile
    from cloob_cli.path_text import path_of, path_text

    batch = []
    for row in rows:
        folders, keywords = labels_of(row)
        batch.append(ToFile(path_of(row.path), folders, keywords if options.xmp else []))
    with signals.held_back():  # the rows of a batch say what became of it
        results = filer.file(batch)
    for row, result in zip(rows, results, strict=True):
        if result.reason:
            work.failed(Failure(row.path, result.reason))
    if options.sort_into is None:
        return rows
    top = os.path.abspath(options.sort_into)

    def shown(target: Path) -> str:
        """A new place, written as the target was on the command line."""
        assert options.sort_into is not None
        return path_text(options.sort_into / Path(os.path.abspath(target)).relative_to(top))

    return [
        replace(row, further={**row.further, "sorted_to": [shown(target) for target in result.targets]})
        for row, result in zip(rows, results, strict=True)
    ]


def _tell(filer: Filer, undo: Path | None) -> None:
    if undo is None:
        return
    parts = []
    if filer.placed:
        parts.append(f"{counted(filer.placed, 'image')} sorted")
    if filer.written:
        parts.append(f"{counted(filer.written, 'sidecar')} written")
    console.info(f"{', '.join(parts) or 'nothing filed'}; to take it back: cloob undo {undo}")
