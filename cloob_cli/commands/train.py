"""`cloob train`: a recipe in, a model folder out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloob_cli import assets, console, launch, signals
from cloob_cli.commands import completion
from cloob_cli.commands.options import DeviceOption, JsonOption, QuietOption
from cloob_cli.errors import CloobError
from cloob_cli.text_format import counted, duration

if TYPE_CHECKING:
    from cloob_cli.core.model_config import ModelConfig
    from cloob_cli.recipe import Recipe

_SKIPS_SHOWN = 20
_SKIPPED = 3  # exit code: done, but some pairs were skipped


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's path, or the name of a shipped one.", metavar="RECIPE", autocompletion=completion.recipes
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder.", show_default="runs/NAME")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one key of the recipe; may be repeated.", metavar="SECTION.KEY=VALUE"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest valid checkpoint in --out.")] = False,
    device: DeviceOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved recipe, the model's size and the data found.")
    ] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model by a recipe.

    The path of the model's folder is printed.
    """
    console.configure(quiet=quiet)
    from cloob_cli.recipe import load_recipe

    inits: list[ModelConfig] = []

    def read_init(recipe: Recipe) -> ModelConfig:
        folder = out or Path("runs") / recipe.name
        if not dry_run:
            _check_unused(folder, resume)
        inits.append(_config_of_init(recipe, folder / "start" if resume else None))
        return inits[-1]

    loaded = load_recipe(assets.find_recipe(recipe), set_, read_init)
    if dry_run:
        _dry_run(loaded, out or Path("runs") / loaded.name, device, json_, inits[0] if inits else None)
        return
    launched = launch.is_launched()
    with signals.leaving_at_once():
        from cloob_cli.registry.resolve import find_model_to_share
        from cloob_cli.training.loop import train_recipe

    folder = out or Path("runs") / loaded.name
    events = train_recipe(
        loaded, folder, device=device, resume=resume, acknowledge=console.info, find_model=find_model_to_share
    )
    with closing(events):  # also where it is not read to its end, such as at Ctrl-C: it hears signals until then
        finished = _show(loaded.name, events)
    if finished is None:
        return  # one of several processes: the main one tells the result
    if json_:
        console.json_document(dataclasses.asdict(finished) | {"model_folder": str(finished.model_folder)})
    else:
        console.line(str(finished.model_folder))
    if finished.skipped and not finished.already and not launched:
        raise typer.Exit(_SKIPPED)


def _check_unused(folder: Path, resume: bool) -> None:
    """Tell of a run's folder that is taken before the model to start from is fetched, which can take minutes."""
    # One process of a run looks; where a launcher's variables do not tell them apart, the run itself does so later.
    if launch.rank() == 0 and (launch.count() > 1 or not launch.is_launched()):
        from cloob_cli.training.run_folder import RunFolder, check_unused

        check_unused(RunFolder(folder), resume)


def _config_of_init(recipe: Recipe, kept: Path | None) -> ModelConfig:
    """The configuration of a `model.init`, or of what a run that is to go on has kept of it.

    The latter where the former is gone, and of one on the Hub, which may be out of reach and which the run's own folder
    makes unnecessary.
    """
    from cloob_cli.checkpoint.folder import is_model_folder, open_model, read_config
    from cloob_cli.convert.folder_formats import foreign_form
    from cloob_cli.data.pairs import find_pairs
    from cloob_cli.registry.resolve import find_model_to_share

    if kept is None:  # what is missing is told before the model is fetched; a finished run needs no data
        find_pairs(recipe.data)
    name = recipe.model.init or ""
    if kept is not None and name.startswith("hf://") and is_model_folder(kept):
        return read_config(kept)
    try:
        folder = find_model_to_share(name)
        return open_model(folder, "cpu").config if foreign_form(folder) else read_config(folder)
    except CloobError:
        if kept is None or not is_model_folder(kept):
            raise
        return read_config(kept)


def _show(name: str, events: Iterable[Any]) -> Any:
    """Show the events of a run and return the last one, Finished; None in a process that does not report."""
    from cloob_cli.training import events as kinds

    finished, skipped, steps = None, 0, 0
    compared = False
    with console.live_status(name) as status:
        for event in events:
            match event:
                case kinds.Preparing():
                    console.info(f"{event.text} ...")
                case kinds.Started():
                    steps = event.steps
                    console.info(_start_text(event))
                case kinds.StepDone():
                    status.update(event.step, steps, event.seconds_left, _values(event))
                case kinds.Validated():
                    console.info(f"step {event.step:,}: {_scores(event.metrics)}")
                case kinds.Blended():
                    columns = _shown_scores(event.metrics)
                    if not compared:
                        console.info("  ".join(["alpha (0 is the start, 1 the end)", *columns]))
                        compared = True
                    cells = (f"{value:>{len(name)}.3f}" for name, value in columns.items())
                    saved = "  saved" if event.chosen else ""
                    console.info("  ".join([f"{event.alpha:<33.3g}", *cells]) + saved)
                case kinds.CheckpointSaved():
                    console.info(f"step {event.step}: saved {event.path}")
                case kinds.PairSkipped():
                    skipped += 1
                    if skipped <= _SKIPS_SHOWN:
                        console.warn(f"skipped {event.name}: {event.reason}")
                    elif skipped == _SKIPS_SHOWN + 1:
                        console.warn("more pairs are skipped; from here on they are only listed in skipped.jsonl")
                case kinds.Notice():
                    console.warn(event.text)
                case kinds.Finished():
                    finished = event
    if finished is None:
        return None
    loss = finished.metrics.get("loss")
    loss_text = f": loss {loss:.4g}" if loss is not None else ""
    if finished.already:
        folder = finished.model_folder.parent
        console.info(
            f"the run in {folder} was finished after step {finished.step:,}{loss_text}; there is nothing to do"
        )
    else:
        console.info(f"trained in {duration(finished.seconds)}{loss_text}")
        if finished.skipped:
            listed = finished.model_folder.parent / "skipped.jsonl"
            console.warn(f"{counted(finished.skipped, 'pair')} could not be read, listed in {listed}")
    return finished


def _start_text(started: Any) -> str:
    resumed = f", from step {started.first_step:,}" if started.first_step else ""
    held_out = f", {started.validation_pairs:,} held out" if started.validation_pairs else ""
    processes = f" on {started.processes} processes" if started.processes > 1 else ""
    return (
        f"{counted(started.pairs, 'pair')}{held_out}; {started.parameters:,} parameters; "
        f"{started.device}, {started.precision}; {counted(started.steps, 'step')} of {started.batch_size:,}"
        f"{processes}{resumed}; loss: {started.loss_implementation}"
    )


def _values(event: Any) -> str:
    values = [f"loss {event.loss:.4f}", f"rate {event.learning_rate:.2e}", f"{event.images_per_second:,.0f} images/s"]
    values += [f"waiting for data {event.data_wait_fraction:.0%}", f"{event.memory_gib:.1f} GiB"]
    return "  ".join(values)


def _scores(metrics: dict[str, float]) -> str:
    """The most important scores, on one line; metrics.jsonl has all of them."""
    recall = [metrics.get(f"retrieval/{way}/recall_1") for way in ("image_to_text", "text_to_image")]
    top1 = {name.split("/")[1]: v for name, v in metrics.items() if name.startswith("zero_shot/") and "/top1" in name}
    parts = [f"recall@1 {recall[0]:.3f} image to text, {recall[1]:.3f} text to image"] if None not in recall else []
    if "mean" in top1 and len(top1) > 2:
        parts.append(f"zero-shot top-1 {top1['mean']:.3f} over {len(top1) - 1} sets")
    else:
        parts += [f"zero-shot top-1 {value:.3f} ({name})" for name, value in top1.items() if name != "mean"]
    return "; ".join(parts) or "no scores"


def _shown_scores(metrics: dict[str, float]) -> dict[str, float]:
    """Recall at 1 in both directions and top-1 of every set, by what they are called in the comparison."""
    names = {
        "retrieval/image_to_text/recall_1": "recall@1 image to text",
        "retrieval/text_to_image/recall_1": "text to image",
    } | {key: key.split("/")[1] for key in metrics if key.startswith("zero_shot/") and key.endswith("/top1")}
    return {name: metrics[key] for key, name in names.items() if key in metrics}


def _dry_run(recipe: Recipe, folder: Path, device: str | None, json_: bool, init: ModelConfig | None) -> None:
    from cloob_cli.registry.resolve import find_model_to_share
    from cloob_cli.training.dry_run import dry_run

    found = dry_run(recipe, folder, device, init, find_model_to_share)
    if json_:
        console.json_document({"recipe": recipe.model_dump(mode="json"), **found})
        return
    console.table(["key", "value"], [*_flat(recipe.model_dump(mode="json")), *found.items()])


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, _text(value))]
    return rows


def _text(value: object) -> str:
    return "" if value is None else str(value)
