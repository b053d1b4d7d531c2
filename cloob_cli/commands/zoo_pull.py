"""`cloob zoo pull | add`: install models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloob_cli import console
from cloob_cli.commands import completion
from cloob_cli.commands.download_progress import reporting
from cloob_cli.commands.options import ConfigOption, DryRunOption, JsonOption, QuietOption
from cloob_cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from cloob_cli.registry.resolve import Origin

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="open_clip, transformers, openai, mljku, crowsonkb, rinna or cloob; left out: detected from the file.",
    ),
]
Sha256Option = Annotated[
    str | None, typer.Option(help="Expected sha256 of the file; of a folder or repository, of its weights.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `cloob zoo`."""
    app.command("pull")(pull)
    app.command("add")(add)


def pull(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Zoo name, hf://ORG/REPO[@REVISION], https address, or a file, folder or bundle.",
            autocompletion=completion.known_models,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The name to install it under.", show_default="as the target")
    ] = None,
    format: FormatOption = None,
    config: ConfigOption = None,
    sha256: Sha256Option = None,
    at_hand: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Use this file instead of a download."),
    ] = None,
    dry_run: DryRunOption = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine already.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an installed model of that name.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch, verify, convert and install a model.

    What is not in safetensors is converted, without running anything of it.
    """
    from cloob_cli.registry import install
    from cloob_cli.registry.resolve import resolve

    console.configure(quiet=quiet)
    origin = resolve(target, name, format, _checked_hash(sha256), at_hand)
    options = install.Options(force=force, offline=offline, config=config)
    if dry_run:
        plan = install.plan(origin, options)
        if json:
            console.json_document(dataclasses.asdict(plan) | {"folder": str(plan.folder)})
            return
        size = "none, it is on this disk" if plan.download_bytes == 0 else console.file_size(plan.download_bytes)
        console.table(
            ["field", "value"],
            [
                ("name", plan.name),
                ("from", plan.origin),
                ("format", plan.format or "as the file shows"),
                ("to", plan.folder),
                ("download", "none, it is installed" if plan.present and not force else size or "not known"),
                ("sha256", plan.sha256 or plan.held_to),
            ],
        )
        return
    try:
        with reporting() as report:
            folder = install.pull(origin, options, report)
    except KeyboardInterrupt:
        raise Interrupted("the pull was interrupted", _what_is_kept(origin)) from None
    if json:
        from cloob_cli.registry.inventory import install_record

        console.json_document({"name": folder.name, "path": str(folder)} | install_record(folder))
    else:
        console.line(str(folder))


def add(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A model folder (open_clip's and transformers' too), a checkpoint or a bundle on this disk.",
        ),
    ],
    name: Annotated[str, typer.Option(help="The name to install it under.")],
    format: FormatOption = None,
    config: ConfigOption = None,
    sha256: Sha256Option = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an installed model of that name.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Install a model of this disk under a name."""
    from cloob_cli.registry import install
    from cloob_cli.registry.resolve import local

    console.configure(quiet=quiet)
    origin = local(source, name, format, _checked_hash(sha256))
    with reporting() as report:
        folder = install.pull(origin, install.Options(force=force, config=config), report)
    console.line(str(folder))


def _what_is_kept(origin: Origin) -> str:
    if origin.path or origin.at_hand:
        return "nothing was installed"
    if origin.url:
        return "pull again: what came so far is kept"
    return "pull again: the files that came whole are kept, the one that was on its way is not"


def _checked_hash(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    cleaned = sha256.strip().lower()
    if len(cleaned) != 64 or not all(sign in "0123456789abcdef" for sign in cleaned):
        raise UsageError(f"{sha256!r} is not a sha256: it has 64 hexadecimal digits")
    return cleaned
