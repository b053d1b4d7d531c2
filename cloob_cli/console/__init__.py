"""The one package that draws: results go to stdout, talk goes to stderr, bars only to a terminal.

A result is a table for people when stdout is a terminal and tab-separated columns in a pipe, or JSON when asked.
Rich is imported on first use, so that commands without output stay quick.
"""

from cloob_cli.console.growing import growing_table
from cloob_cli.console.messages import can_ask, debugging, hint, show_error, talk, warn
from cloob_cli.console.progress import Progress, duration, progress
from cloob_cli.console.results import bytes_text, json_document, json_line, line, on_terminal, table
from cloob_cli.console.status import Status, live_status
from cloob_cli.console.streams import configure, finish_streams, flush, is_quiet, prepare_streams, unread_is_no_fault

__all__ = [
    "Progress",
    "Status",
    "bytes_text",
    "can_ask",
    "configure",
    "debugging",
    "duration",
    "finish_streams",
    "flush",
    "growing_table",
    "hint",
    "is_quiet",
    "json_document",
    "json_line",
    "line",
    "live_status",
    "on_terminal",
    "prepare_streams",
    "progress",
    "show_error",
    "table",
    "talk",
    "unread_is_no_fault",
    "warn",
]
