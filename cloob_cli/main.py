"""The command `cloob`: register its commands, and turn errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from cloob_cli import console, launch, process_exchange, signals
from cloob_cli.commands import analyze, classify, dedupe, doctor, embed, eval, examples, search, train, undo, zoo_list
from cloob_cli.errors import CloobError, UsageError
from cloob_cli.version import __version__

app = typer.Typer(
    name="cloob",
    help="Train CLOOB models, keep a zoo of them, and classify and embed folders of images.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: it takes [@REVISION] as it stands, wraps paragraphs, and needs no Rich
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("classify")(classify.classify)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("dedupe")(dedupe.dedupe)
app.command("eval")(eval.evaluate)
app.command("analyze")(analyze.analyze)
app.command("train")(train.train)
app.command("undo")(undo.undo)
app.add_typer(zoo_list.app, name="zoo")
app.command("doctor")(doctor.doctor)
examples.add_examples(app)


@app.callback()
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.line(f"cloob {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.line(context.get_help())


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    console.prepare_streams()
    signals.unwind()
    launch.end_with_launcher()
    code = _exit_code()
    try:
        console.finish_streams()
    except CloobError as error:
        console.show_error(error)
        code = code or error.exit_code
    signals.forget_interrupts()
    sys.exit(code)


def _exit_code() -> int:
    """Run the command line; every expected error becomes a line and a hint."""
    try:
        code = app(standalone_mode=False) or 0  # None, or what a `typer.Exit` held
        signals.leave_at_once()  # the work is over: what follows must not be torn by a further Ctrl-C
        if code == signals.EXIT_CODE:  # what Typer makes of KeyboardInterrupt
            console.show_error(CloobError("interrupted"))
        return code
    except Exception as problem:
        signals.leave_at_once()
        error = _expected(problem)
        if error is None or console.debugging():
            raise
        console.show_error(error)
        return error.exit_code


def _expected(problem: Exception) -> CloobError | None:
    """Convert an error that is no fault of the program to the one that is shown; None for any other."""
    if isinstance(problem, CloobError):
        return problem
    if isinstance(problem, typer.Abort):  # "no" to a question
        return CloobError("aborted")
    if hasattr(problem, "format_message"):  # Typer's own: wrong usage. Its classes moved between versions.
        context = getattr(problem, "ctx", None)
        return UsageError(problem.format_message(), f"see {context.command_path} --help" if context else None)
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return CloobError("out of memory", "a smaller --batch-size (or train.micro_batch_size) needs less")
    if launch.count() > 1 and process_exchange.is_lost_process(problem):
        return CloobError(
            "another process of this run was lost", "its own message says why; a training run goes on with --resume"
        )
    if isinstance(problem, OSError):
        path = f": {problem.filename}" if problem.filename else ""
        return CloobError(f"{problem.strerror or problem}{path}", _remedy(problem))
    return None


def _remedy(problem: OSError) -> str:
    """The hint about a file that cannot be read or written."""
    import errno
    from pathlib import Path

    from cloob_cli.registry import paths

    if problem.errno == errno.ENOSPC:
        return "free some room on that disk; `cloob zoo prune` removes what is no longer needed"
    if problem.errno in {errno.EROFS, errno.EACCES, errno.EPERM} and isinstance(problem.filename, str | bytes):
        home = paths.home().absolute()
        named = Path(os.path.abspath(os.fsdecode(problem.filename)))
        if named == home or named in home.parents or home in named.parents:
            return "CLOOB_HOME names another folder for models, indexes and what is kept"
    return "CLOOB_DEBUG=1 shows where"
