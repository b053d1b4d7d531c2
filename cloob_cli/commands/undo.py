"""`cloob undo`: take back what sorting and writing sidecars did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloob_cli import console
from cloob_cli.commands.options import JsonOption, QuietOption


def undo(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The undo file that the command named at its end.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take back what `cloob classify` did to files.

    That is, what --sort-into and --xmp did. Copies and links go, moved images return, sidecars get their old
    contents, and folders that were made and are empty go; then the undo file itself. What was changed since is kept
    and named: the exit code is then 1, and the undo file stays.

    FILE is the undo file of one run. To take back several runs, begin with the last one.
    """
    console.configure(quiet=quiet)
    from cloob_cli.filing.undo import undo as take_back

    with console.track("undo", unit="files", delay=0.5) as bar:
        undone = take_back(file, bar.advance)
    for failure in undone.kept:
        console.warn(f"{failure.name} {failure.reason}")
    if as_json:
        kept = [{"path": failure.name, "reason": failure.reason} for failure in undone.kept]
        console.json_document({"undone": undone.files, "kept": kept})
    else:
        console.line(f"{undone.files} undone, {len(undone.kept)} kept")
    if undone.kept:
        console.hint(f"{file} stays: put right what is named and run the same command again")
        raise typer.Exit(1)
