"""Show and write the rows of `cloob classify`, and what is said about labels beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console, signals
from cloob_cli.text_format import counted, told_cut

if TYPE_CHECKING:
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.errors import Failure
    from cloob_cli.inference.classify import ClassifiedBatch
    from cloob_cli.inference.rows import Classified
    from cloob_cli.inference.tokens import LabelTokens

AddRows = Callable[[Iterable["Classified"]], None]

_GROUPS = 5  # groups of labels with equal tokens that are named in warnings
# Columns beside the labels that are shown, with their usual widths on a terminal.
_SHOWN = {"rejection": 9, "decided_by": 10, "labels": 30, "set": 30}


def report_tokens(found: LabelTokens, context: int) -> None:
    """Warn of labels that the model cannot tell apart and of texts that it cuts."""
    for names in found.alike[:_GROUPS]:
        shown = ", ".join(f"'{name}'" for name in names)
        console.warn(f"the model cannot tell these labels apart, as they have the same tokens: {shown}")
    if len(found.alike) > _GROUPS:
        more = len(found.alike) - _GROUPS
        which = "group of labels has" if more == 1 else "groups of labels have"
        console.warn(f"{more:,} more {which} the same tokens")
    if found.cut:
        console.warn(told_cut(found.cut, f"{found.cut:,} of {counted(found.texts, 'label text')}", context))


def printer(
    as_json: bool, top_k: int, paths: Sequence[Path | Failure], labels: Iterable[str], further: Sequence[str]
) -> AddRows:
    """Return the function that shows rows on stdout.

    Args:
        paths: all images, and
        labels: all labels, which set the widths of a table.
        further: the names of what rows have beside their labels.
    """
    from cloob_cli.inference.rows import columns
    from cloob_cli.path_text import path_text

    if as_json:
        return _print_json
    keys = (path_text(path) for path in paths if isinstance(path, Path))
    shown = [name for name in further if name in _SHOWN]
    add = console.growing_table(columns(top_k, shown), 3, keys, labels, [_SHOWN[name] for name in shown])
    hidden = len(further) - len(shown)  # the last ones
    return lambda rows: add(_cells(row, hidden) for row in rows)


def show(batches: Iterable[ClassifiedBatch], add: AddRows, to_the_end: bool = False) -> None:
    """Show rows as they come; `to_the_end`: also where nobody reads them any more, since something else needs all."""
    for batch in batches:
        with signals.held_back(), console.ignore_closed_stdout() if to_the_end else nullcontext():
            add(batch.rows)  # held back: half a batch printed could be printed twice


def write(
    output: Path,
    batches: Iterable[ClassifiedBatch],
    top_k: int,
    work: Work,
    as_json: bool,
    metadata: dict[str, str],
    further: Sequence[str],
) -> None:
    """Write rows to `output` and failures beside it; with `as_json` show the rows too."""
    from cloob_cli.files import replacing_together
    from cloob_cli.inference.output_files import output_files
    from cloob_cli.inference.outputs import write_failures
    from cloob_cli.inference.rows import open_rows

    with replacing_together(output_files(output, "classify")) as [file, listing]:
        with open_rows(file, output.suffix.lower(), top_k, metadata, further) as add:
            for batch in batches:
                add(batch.rows)
                if as_json:
                    # The file is the result: it is finished also where nobody reads stdout any more.
                    with console.ignore_closed_stdout():
                        _print_json(batch.rows)
        write_failures(listing, work.failures)


def _print_json(rows: Iterable[Classified]) -> None:
    for row in rows:
        console.json_line(row.as_dict())
    console.flush()


def _cells(row: Classified, hidden: int) -> list[str]:
    cells = row.as_row()
    return [f"{cell:z.4f}" if isinstance(cell, float) else cell for cell in cells[: len(cells) - hidden]]
