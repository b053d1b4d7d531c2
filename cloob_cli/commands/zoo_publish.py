"""`cloob zoo bundle | push`: a model as one file, or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloob_cli import console
from cloob_cli.commands.options import InputNameArgument, QuietOption
from cloob_cli.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add this module's commands to `cloob zoo`."""
    app.command("bundle")(bundle)
    app.command("push")(push)


def bundle(
    name: InputNameArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not a bundle.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model into one file.

    `cloob zoo pull FILE` installs it on a machine without network.
    """
    from cloob_cli.inference.output_paths import check_writable
    from cloob_cli.registry.bundle import is_bundle
    from cloob_cli.registry.publish import bundle_model

    console.configure(quiet=quiet)
    check_writable(output, "--output")
    if output.exists() and output.stat().st_size and not (force or is_bundle(output)):
        raise UsageError(f"{output} exists, and is no bundle", "choose another --output, or overwrite it with --force")
    bundle_model(name, output)
    console.line(str(output))


def push(
    name: InputNameArgument,
    repository: Annotated[str, typer.Argument(metavar="ORG/REPO", help="The repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Upload a model to the Hugging Face Hub.

    Its folder, with the model card.
    """
    from cloob_cli.registry.publish import push_model

    console.configure(quiet=quiet)
    console.line(push_model(name, repository, private))
