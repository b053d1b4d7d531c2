"""`cloob zoo convert | export`: models of other programs in our format, and ours in theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloob_cli import console
from cloob_cli.commands.options import ConfigOption, InputNameArgument, QuietOption
from cloob_cli.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add this module's commands to `cloob zoo`."""
    app.command("convert")(convert)
    app.command("export")(export)


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint, the folder that holds it, or hf://ORG/REPO[@REVISION]."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="open_clip, transformers, openai, mljku, crowsonkb or rinna; left out: detected from the file.",
        ),
    ] = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
) -> None:
    """Convert another program's checkpoint.

    The result is a model folder. Nothing in the checkpoint is run.
    """
    from cloob_cli.registry import hub
    from cloob_cli.registry.fill_folder import convert_to_folder

    console.configure(quiet=quiet)
    must_be_new(output)
    on_the_hub = checkpoint.startswith("hf://")
    source = hub.model_folder(checkpoint) if on_the_hub else Path(checkpoint)
    ignored = convert_to_folder(source, output, format, config, checkpoint if on_the_hub else None)
    if ignored:
        console.info(f"left out, as inference does not need them: {', '.join(ignored)}")
    console.line(str(output))


def export(
    name: InputNameArgument,
    to: Annotated[str, typer.Option("--to", help="open_clip, transformers or onnx.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    quiet: QuietOption = False,
) -> None:
    """Write a model in another program's format."""
    from cloob_cli.export import export_model
    from cloob_cli.registry.resolve import find_model_to_share

    console.configure(quiet=quiet)
    must_be_new(output)
    export_model(find_model_to_share(name), to, output)
    console.line(str(output))


def must_be_new(output: Path) -> None:
    """Raise UsageError where there is something at `output`, or no folder can be made there."""
    from cloob_cli.inference.output_paths import check_place_of

    check_place_of(output, "--output")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists already", "name a folder that does not exist")
