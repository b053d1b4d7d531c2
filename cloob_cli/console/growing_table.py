"""A table whose rows appear as they come.

Its rows are a key (a path) and a number of groups of the same cells, of which the first is text and the others are
numbers (label, probability, cosine). Off a terminal it is tab-separated columns. On a terminal that is wide enough it
is one line a row; on a narrower one the key has a line of its own and every group another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from cloob_cli.console.result_output import cell_text, line
from cloob_cli.console.streams import result_console

Row = Sequence[object]
AddRows = Callable[[Iterable[Row]], None]

_GAP = 2  # spaces between columns
_LEAST_KEY = 16  # columns of a terminal below which no key can be read
_NUMBER = len("-0.0000")
_FITTING = 0.9  # fraction of the keys that have to fit on their line; the others are folded


def growing_table(
    columns: Sequence[str], group: int, keys: Iterable[str], texts: Iterable[str], further: Sequence[int] = ()
) -> AddRows:
    """Begin a table on stdout and return the function that appends rows to it.

    Args:
        columns: the names of a row's cells: the key's, those of all groups, and the further ones.
        group: the number of cells of a group.
        keys: the keys of all rows to come, which set the widths of columns; read on a terminal only.
        texts: the texts that groups may begin with, for the same purpose.
        further: the widths of cells at the end of a row that belong to no group; longer ones are folded.
    """
    if not sys.stdout.isatty():
        return _plain_rows(columns)
    drawn = _TerminalRows(columns, group, keys, texts, further)
    return drawn.add


def _plain_rows(columns: Sequence[str]) -> AddRows:
    begun = False

    def add(rows: Iterable[Row]) -> None:
        nonlocal begun
        for row in rows:
            if not begun:  # an error comes before the header
                line("\t".join(columns))
                begun = True
            line("\t".join(map(cell_text, row)))
        sys.stdout.flush()

    return add


class _TerminalRows:
    def __init__(
        self, columns: Sequence[str], group: int, keys: Iterable[str], texts: Iterable[str], further: Sequence[int]
    ) -> None:
        from rich.cells import cell_len

        grouped = len(columns) - len(further)
        self._columns, self._group = list(columns[:grouped]), group
        self._further, self._further_widths = list(columns[grouped:]), list(further)
        lengths = sorted(cell_len(cell_text(key)) for key in keys)
        self._longest_key = max([len(columns[0]), *lengths[-1:]])
        self._usual_key = lengths[int(_FITTING * (len(lengths) - 1))] if lengths else 0
        self._text = max(
            [len(name) for name in self._columns[1::group]] + [cell_len(cell_text(text)) for text in texts]
        )
        self._layout: list[int] | None = None
        self._begun = False

    def add(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        if not rows:
            return
        layout = self._widths(result_console().width)
        new = not self._begun or layout != self._layout  # first, or the terminal has another width now
        self._begun, self._layout = True, layout
        if layout:
            self._add_lines(rows, layout, new)
        else:
            self._add_blocks(rows, new)

    def _widths(self, available: int) -> list[int] | None:
        """The width of every column; None where a row does not fit on a line."""
        groups = [
            self._text if i % self._group == 0 else max(_NUMBER, len(name)) for i, name in enumerate(self._columns[1:])
        ]
        groups += [max(width, len(name)) for width, name in zip(self._further_widths, self._further, strict=True)]
        room = available - sum(groups) - _GAP * len(groups)
        if room < max(_LEAST_KEY, min(self._usual_key, self._longest_key)):
            return None
        return [min(room, self._longest_key), *groups]

    def _add_lines(self, rows: list[Row], widths: list[int], header: bool) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_header=header)
        for name, width in zip([*self._columns, *self._further], widths, strict=True):
            table.add_column(name, width=width, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell_text(cell)) for cell in row))
        result_console().print(table)

    def _add_blocks(self, rows: list[Row], header: bool) -> None:
        """Print the key, then each group on a line of its own with its text last, since that may be of any length."""
        from rich.text import Text

        text, *numbers = self._columns[1 : 1 + self._group]
        lines = []
        if header:
            lines += [Text(self._columns[0], style="bold"), Text(self._block_line([text, *numbers]), style="bold")]
        for key, *cells in rows:
            cells, beside = cells[: len(self._columns) - 1], cells[len(self._columns) - 1 :]
            lines.append(Text(cell_text(key)))
            groups = [cells[i : i + self._group] for i in range(0, len(cells), self._group)]
            lines += [Text(self._block_line(group), style="dim" if i else "") for i, group in enumerate(groups)]
            if beside:
                named = (f"{name} {cell_text(cell)}" for name, cell in zip(self._further, beside, strict=True))
                lines.append(Text(" " * _GAP + ", ".join(named), style="dim"))
        result_console().print(Text("\n").join(lines), soft_wrap=True)

    def _block_line(self, group: Sequence[object]) -> str:
        names = self._columns[2 : 1 + self._group]
        numbers = (cell_text(cell).ljust(max(_NUMBER, len(name))) for name, cell in zip(names, group[1:], strict=True))
        return "".join(" " * _GAP + number for number in [*numbers, cell_text(group[0])])
