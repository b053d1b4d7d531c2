"""The command `cloob`: registers the verbs, and is the one place where errors become exit codes."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from cloob_cli import __version__, console
from cloob_cli.commands import classify, doctor, embed, train, zoo
from cloob_cli.errors import CloobError

app = typer.Typer(
    name="cloob",
    help="Train CLOOB models, keep a zoo of them, and classify and embed folders of pictures.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("classify")(classify.classify)
app.command("embed")(embed.embed)
app.command("train")(train.train)
app.add_typer(zoo.app, name="zoo")
app.command("doctor")(doctor.doctor)


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    if version:
        console.line(f"cloob {__version__}")
        raise typer.Exit


def run() -> NoReturn:
    """The entry point: run the command line, leave with its exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    # A terminal that closes. `nohup` has it ignored, and so it stays.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _as_interrupt)
    try:
        app()
    except CloobError as error:
        if console.debugging():
            raise
        console.show_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if console.debugging():
            raise
        console.show_error(CloobError(_describe(error), "CLOOB_DEBUG=1 shows where"))
        sys.exit(1)
    except Exception as error:
        if console.debugging() or not _out_of_memory(error):
            raise
        console.show_error(CloobError("out of memory", "a smaller --batch-size (or train.micro_batch_size) needs less"))
        sys.exit(1)
    raise AssertionError("the command line always exits")


def _as_interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # SIGTERM (a cluster's "time is up") and SIGHUP are treated as Ctrl-C: commands save what they can and leave
    # with 130.
    raise KeyboardInterrupt


def _describe(error: OSError) -> str:
    path = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{path}"


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
