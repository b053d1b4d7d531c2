"""Everything that is printed: results on stdout; notices, progress, warnings and errors on stderr.

Start here. A command calls `configure` once, then

- `info`, `hint`, `warn` and `show_error` for lines on stderr (messages.py),
- `track` for a bar, and `live_status` for the display of a training run (progress.py, run_display.py),
- `table`, `growing_table`, `line`, `json_line` and `json_document` for its result (result_output.py, growing_table.py).

streams.py knows the two streams: encodings, closed pipes, terminals. A result is a table for people when stdout is a
terminal and tab-separated columns in a pipe, or JSON when asked. Bars are drawn on a terminal only. No other package
draws. Rich is imported on first use, so that commands without output stay quick.
"""

from cloob_cli.console.growing_table import growing_table
from cloob_cli.console.messages import can_ask, debugging, hint, info, show_error, warn
from cloob_cli.console.progress import Progress, track
from cloob_cli.console.result_output import file_size, json_document, json_line, line, on_terminal, table
from cloob_cli.console.run_display import Status, live_status
from cloob_cli.console.streams import configure, finish_streams, flush, ignore_closed_stdout, is_quiet, prepare_streams

__all__ = [
    "Progress",
    "Status",
    "can_ask",
    "configure",
    "debugging",
    "file_size",
    "finish_streams",
    "flush",
    "growing_table",
    "hint",
    "ignore_closed_stdout",
    "info",
    "is_quiet",
    "json_document",
    "json_line",
    "line",
    "live_status",
    "on_terminal",
    "prepare_streams",
    "show_error",
    "table",
    "track",
    "warn",
]
