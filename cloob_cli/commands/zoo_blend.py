"""`cloob zoo blend`: a model between two others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloob_cli import console
from cloob_cli.commands import completion
from cloob_cli.commands.options import JsonOption, QuietOption
from cloob_cli.commands.zoo_convert import must_be_new


def register(app: typer.Typer) -> None:
    """Add this module's command to `cloob zoo`."""
    app.command("blend")(blend)


def blend(
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="Zoo name or model folder.", autocompletion=completion.usable_models)
    ],
    second: Annotated[
        str, typer.Argument(metavar="SECOND", help="Zoo name or model folder.", autocompletion=completion.usable_models)
    ],
    alpha: Annotated[float, typer.Option("--alpha", help="0: the first model; 1: the second; between: a mixture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.")],
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model between two others.

    Its weights lie between those of the two, of which one was fine-tuned from the other.
    """
    from cloob_cli.checkpoint.blend import blend_models
    from cloob_cli.registry.resolve import find_model_to_share

    console.configure(quiet=quiet)
    must_be_new(output)
    folders = find_model_to_share(first), find_model_to_share(second)
    names = tuple(Path(name).name if Path(name).exists() else name for name in (first, second))
    blend_models(*folders, alpha, output, (names[0], names[1]))
    if json_:
        console.json_document({"path": str(output), "models": list(names), "alpha": alpha})
    else:
        console.line(str(output))
