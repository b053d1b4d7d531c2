"""`cloob zoo rm | prune`: remove installed models, and what is left over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloob_cli import console
from cloob_cli.commands import completion
from cloob_cli.commands.options import DryRunOption
from cloob_cli.errors import UsageError

if TYPE_CHECKING:
    from cloob_cli.registry.remove import Removal

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `cloob zoo`."""
    app.command("rm")(remove)
    app.command("prune")(prune)


def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Installed models.", autocompletion=completion.installed_models),
    ],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Remove installed models."""
    from cloob_cli.registry import remove as removal

    _carry_out([removal.model_removal(name) for name in dict.fromkeys(names)], dry_run, yes)


def prune(dry_run: DryRunOption = False, yes: YesOption = False) -> None:
    """Remove what is left over.

    Unfinished downloads and installs, quarantined files, and embeddings not used for 30 days.
    """
    from cloob_cli.registry import remove as removal

    _carry_out(removal.leftovers(), dry_run, yes)


def _carry_out(removals: list[Removal], dry_run: bool, yes: bool) -> None:
    from cloob_cli.registry.remove import carry_out

    console.table(
        ["path", "what", "frees"], [(each.path, each.what, console.file_size(each.bytes)) for each in removals]
    )
    freed = console.file_size(sum(each.bytes for each in removals))
    if not removals or dry_run:
        console.info(f"{freed} would be freed" if removals else "nothing to remove")
        if not dry_run:
            carry_out([])
        return
    if not yes:
        if not console.can_ask():
            raise UsageError("nobody is there to ask", "give -y to remove these, or --dry-run to only list them")
        typer.confirm(f"Remove these and free {freed}?", abort=True, err=True)
    carry_out(removals)
    console.info(f"freed {freed}")
