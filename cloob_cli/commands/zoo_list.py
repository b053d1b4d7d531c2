"""`cloob zoo list | show | path | default`: list models, describe one, choose the default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloob_cli import console
from cloob_cli.commands import completion, zoo_blend, zoo_convert, zoo_publish, zoo_pull, zoo_remove, zoo_verify
from cloob_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from cloob_cli.registry.inventory import InventoryItem

app = typer.Typer(
    help="The zoo: list, pull, verify, export models.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Zoo name, model folder or hf://ORG/REPO[@REVISION].",
        autocompletion=completion.known_models,
    ),
]


@app.callback()
def _zoo(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.line(context.get_help())


@app.command("list")
def list_models(
    installed: Annotated[
        bool, typer.Option("--installed", help="List only models on this machine, bundled or installed.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List all models with what is known of them.

    State, size, resolution, training data, score, license.
    """
    from cloob_cli.registry.inventory import all_models

    models = [model for model in all_models() if model.path or not installed]
    if json:
        console.json_document([model.as_json() for model in models])
        return
    columns = ["name", "state", "default", "size", "pixels", "data", "score", "license"]
    rows = []
    for model in models:
        rows.append(
            [
                model.name,
                model.state,
                "yes" if model.is_default else None,
                console.file_size(model.size_bytes),
                model.image_size,
                model.data,
                _score(model, short=console.on_terminal()),
                model.license or "not stated",
            ]
        )
    console.table(columns, rows, dispensable=["data", "license", "pixels", "default"])


def _score(model: InventoryItem, short: bool) -> str | None:
    """The ImageNet score, by which models are compared; where there is none, and room, the first of the entry."""
    imagenet = [score for score in model.scores if (score.dataset, score.metric) == ("ImageNet", "zero-shot top-1")]
    if short:
        return f"ImageNet {imagenet[0].value:.1f} %" if imagenet else None
    first = next(iter([*imagenet, *model.scores]), None)
    return f"{first.dataset} {first.metric} {first.value:g} %" if first else None


@app.command("show")
def show(name: NameArgument, json: JsonOption = False) -> None:
    """Show all that is known of one model."""
    facts = _facts(name)
    if json:
        console.json_document(facts)
    else:
        console.table(["field", "value"], list(_lines(_essentials(facts) if "vision" in facts else facts)))


@app.command("path")
def path(name: NameArgument) -> None:
    """Print the folder of a model that is here."""
    from cloob_cli.registry.resolve import find_model

    console.line(str(find_model(name)))


@app.command("default")
def default(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The model to use from now on; left out: print it.",
            autocompletion=completion.usable_models,
        ),
    ] = None,
) -> None:
    """Print or set the default model.

    It is the one that is used where none is named.
    """
    from cloob_cli import assets
    from cloob_cli.atomic_files import replacing
    from cloob_cli.registry import inventory, paths
    from cloob_cli.registry.resolve import find_model

    if name is None:
        console.line(inventory.default_model())
        return
    folder = find_model(name)
    in_the_zoo = folder in (paths.installed_folder(name), assets.bundled_folder(name))
    chosen = name if in_the_zoo else str(folder.resolve())
    chosen = name if name.startswith("hf://") else chosen
    with replacing(paths.default_file()) as temporary:
        temporary.write_text(chosen + "\n", encoding="utf-8")
    console.line(chosen)


def _facts(name: str) -> dict[str, Any]:
    from cloob_cli import assets
    from cloob_cli.checkpoint.folder import is_model_folder, read_config
    from cloob_cli.registry import entries, paths
    from cloob_cli.registry.inventory import folder_size, install_record
    from cloob_cli.registry.resolve import find_model

    facts: dict[str, Any] = {}
    if name in entries.entry_names():
        facts = entries.find_entry(name).model_dump(exclude_none=True)
        if not any(is_model_folder(at(name)) for at in (paths.installed_folder, assets.bundled_folder)):
            return facts | {"state": "not installed"}
    folder = find_model(name)
    if not facts:
        facts = read_config(folder).model_dump(exclude_none=True)
    state = "bundled" if folder == assets.bundled_folder(folder.name) else "installed"
    if folder not in (assets.bundled_folder(folder.name), paths.installed_folder(folder.name)):
        state = "a folder"
    facts |= {"state": state, "path": str(folder), "size_bytes": folder_size(folder)}
    record = install_record(folder)
    return facts | ({"installed": record} if record else {})


def _essentials(facts: dict[str, Any]) -> dict[str, Any]:
    """Select the facts that matter most of a model without a zoo entry; `--json` prints all."""
    vision, text = facts["vision"], facts["text"]
    shown = {
        "name": facts["name"] or None,
        "state": facts["state"],
        "path": facts["path"],
        "size": console.file_size(facts["size_bytes"]),
        "images": f"{vision['kind']}, width {vision['width']}, {vision['image_size']} x {vision['image_size']} pixels",
        "texts": f"width {text['width']}, {text['context_length']} tokens of {text['vocab_size']:,}",
        "embedding": f"{facts['embed_dim']} dimensions",
        "inv_tau": f"{facts['inv_tau']:.4g}",
        "scale_hopfield": facts.get("scale_hopfield"),
        "recipe": (facts.get("recipe") or {}).get("name"),
        "source": ", ".join(str(facts["source"][key]) for key in ("format", "origin") if key in facts["source"])
        or None,
        "metrics": {key: f"{value:.4g}" for key, value in facts["metrics"].items() if isinstance(value, float)},
        "installed": {
            key: value for key, value in facts.get("installed", {}).items() if key in ("origin", "installed")
        },
    }
    return {key: value for key, value in shown.items() if value is not None}


def _lines(facts: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested values to pairs of a key `a.b.c` and a text."""
    if isinstance(facts, dict):
        return [line for key, value in facts.items() for line in _lines(value, f"{prefix}.{key}" if prefix else key)]
    if isinstance(facts, list) and any(isinstance(item, dict | list) for item in facts):
        return [line for number, item in enumerate(facts, 1) for line in _lines(item, f"{prefix}.{number}")]
    if isinstance(facts, list):
        return [(prefix, ", ".join(str(item) for item in facts))] if facts else []
    return [(prefix, str(facts))]


for module in (zoo_pull, zoo_verify, zoo_remove, zoo_convert, zoo_publish, zoo_blend):
    module.register(app)
