"""Options that several commands share, so that they read and work alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloob_cli.commands import completion


def _bytes(text: str) -> int:
    from cloob_cli.data.decoding_memory import parse_bytes

    return parse_bytes(text)


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Zoo name, model folder or hf://ORG/REPO[@REVISION].",
        envvar="CLOOB_MODEL",
        show_default="the default of the zoo, or else the bundled one",
        autocompletion=completion.usable_models,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1, mps.", show_default="auto", autocompletion=completion.devices),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="fp32, fp16 or bf16.",
        show_default="fp16 on CUDA, fp32 elsewhere",
        autocompletion=completion.precisions,
    ),
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Images or texts per pass.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Threads that read and decode images.", show_default="by CPU count")
]
ExactOption = Annotated[
    bool,
    typer.Option(
        "--exact", help="Decode every image in full; otherwise large ones are made smaller first, some 4 times faster."
    ),
]
# What it asked for is the default now.
FastJpegOption = Annotated[bool, typer.Option("--fast-jpeg", hidden=True, help="Does nothing; see --exact.")]
MemoryBudgetOption = Annotated[
    int | None,
    typer.Option(
        parser=_bytes,
        metavar="SIZE",
        help="Memory for decoding, like 1GB. Images wait until enough is free; those that need more are skipped.",
        envvar="CLOOB_MEMORY_BUDGET",
        show_default="a quarter of the machine's",
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a page for a browser as well: one file with thumbnails, to sort, filter and look through.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Overwrite files that this command did not write (never its inputs).")
]
NoUpdateOption = Annotated[bool, typer.Option("--no-update", help="Take the folder's index as it is.")]
RebuildOption = Annotated[
    bool, typer.Option("--rebuild", help="Embed all images anew, also those whose embeddings are known.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Leave out files and folders of this name, like 'thumb*'; with a / paths below DIR. May be repeated.",
    ),
]
NullOption = Annotated[
    bool,
    typer.Option("--null", "-0", help="Paths from standard input (`-`) end with a null character, not a line break."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no notices and no progress on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
InputNameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Zoo name or model folder.", autocompletion=completion.usable_models)
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The checkpoint's own configuration (JSON).")]
