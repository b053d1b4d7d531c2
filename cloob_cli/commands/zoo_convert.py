"""`cloob zoo convert | export | bundle | push`: write models in other formats and places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloob_cli import console
from cloob_cli.commands import completion
from cloob_cli.commands.options import QuietOption
from cloob_cli.errors import UsageError

InputNameArgument = Annotated[
    str, typer.Argument(help="Zoo name or model folder.", autocompletion=completion.usable_models)
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `cloob zoo`."""
    app.command("convert")(convert)
    app.command("export")(export)
    app.command("bundle")(bundle)
    app.command("push")(push)


def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, the folder that holds it, or hf://ORG/REPO[@REVISION].")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="open_clip, transformers, openai, mljku, crowsonkb or rinna; left out: detected from the file.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The checkpoint's own configuration (JSON).")] = None,
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


def bundle(
    name: InputNameArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not a bundle.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model into one file.

    `cloob zoo pull FILE` installs it on a machine without network.
    """
    from cloob_cli.inference.output_files import check_writable
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


def must_be_new(output: Path) -> None:
    """Raise UsageError where there is something at `output`, or no folder can be made there."""
    from cloob_cli.inference.output_files import check_place_of

    check_place_of(output, "--output")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists already", "name a folder that does not exist")
