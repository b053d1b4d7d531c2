"""Results on stdout: tables, plain columns and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from cloob_cli.console.streams import is_drawing, result_console, unwritable
from cloob_cli.text_format import printable

_GAP = 2  # between the columns of a table


def on_terminal() -> bool:
    """True where stdout is a terminal."""
    return sys.stdout.isatty()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], dispensable: Sequence[str] = ()) -> None:
    """Print rows: a table on a terminal, tab-separated columns with a header line elsewhere.

    Args:
        dispensable: columns that are left out, in this order, of a terminal that is too narrow for all.
    """
    if not on_terminal():
        line("\t".join(columns))
        for row in rows:
            line("\t".join(map(cell_text, row)))
        return
    from rich.table import Table
    from rich.text import Text

    texts = [[Text(cell_text(cell)) for cell in row] for row in rows]
    widths = [max([len(name), *(row[i].cell_len for row in texts)]) for i, name in enumerate(columns)]
    kept = list(range(len(columns)))
    for name in dispensable:
        if sum(widths[number] + _GAP for number in kept) - _GAP <= result_console().width:
            break
        kept.remove(columns.index(name))
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    for number in kept:
        drawn.add_column(columns[number], overflow="fold")
    for row in texts:
        drawn.add_row(*(row[number] for number in kept))
    result_console().print(drawn)


def line(text: str, end: str = "\n") -> None:
    """Print one plain line of the result. Bytes of a file name that are not UTF-8 come out as they went in."""
    if end == "\n" and is_drawing() and sys.stdout.isatty():
        from rich.text import Text

        result_console().print(Text(text), soft_wrap=True)
        return
    try:
        sys.stdout.write(text + end)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise unwritable(problem) from None


def json_line(value: Any) -> None:
    """Print one object of a JSON Lines result."""
    line(json.dumps(value, ensure_ascii=True, allow_nan=False))


def json_document(value: Any) -> None:
    """Print the whole result as one JSON document."""
    line(json.dumps(value, ensure_ascii=True, allow_nan=False, indent=2))


def file_size(count: int | None) -> str | None:
    """A number of bytes for people, like "408.0 MB"; None stays None."""
    from rich.filesize import decimal

    return None if count is None else decimal(count)


def cell_text(cell: object) -> str:
    """A value as one line of printable text; none is empty."""
    return printable("" if cell is None else str(cell))
