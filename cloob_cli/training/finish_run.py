"""The end of a run: the final validation, the model's folder with its card, the loss curve, the result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cloob_cli.checkpoint.card import trained_model_card
from cloob_cli.checkpoint.folder import save_model
from cloob_cli.core.device import PRECISIONS
from cloob_cli.errors import MissingExtraError, TrainingError, one_line
from cloob_cli.recipe import MODEL_KEYS, PATH_KEYS, Recipe
from cloob_cli.training.build_run import VALIDATION_KEYS, Run
from cloob_cli.training.events import Event, Finished, Notice, Validated
from cloob_cli.training.interpolation import WeightPath, compare_alphas
from cloob_cli.training.loss_curve import draw_loss_curve
from cloob_cli.training.new_model import shown_name
from cloob_cli.training.run_events import started, validate


def finish(run: Run) -> Iterator[Event]:
    """Validate and save the model of a run whose steps are done; its last event is Finished.

    Raises:
        TrainingError: the final validation failed; the model is saved without scores.
        Interrupted: stopped in the final validation; likewise.
    """
    metrics = {"loss": run.last_loss} if math.isfinite(run.last_loss) else {}
    stop = run.stop
    stop.nothing_to_save = None
    alpha = run.recipe.finetune.interpolate
    with ExitStack() as applied:
        if run.ema:
            applied.enter_context(run.ema.applied_to(run.model))
        path = None
        if alpha is not None:
            if run.is_main:
                _save_model(run, {}, f"# {run.recipe.name}: the end\n", run.folder.end)
            path = applied.enter_context(WeightPath.of(run))
            path.go_to(alpha)
        # The model comes first, with a card that cannot go wrong: nothing that fails from here on costs it.
        if run.is_main:
            _save_model(run, metrics, f"# {run.recipe.name}\n")
        if run.validator:
            stop.hint = "the same command with --resume adds them"
            stop.nothing_to_save = f"stopped in the final validation; {run.folder.model} is saved without scores"
            stop.check()
            for event in validate(run):
                metrics |= event.metrics if isinstance(event, Validated) else {}
                yield event
            if path is not None and alpha is not None:
                yield from compare_alphas(run, path, alpha, metrics)
                path.go_to(alpha)
            stop.nothing_to_save = None
        elif path is not None:
            yield Notice(f"finetune.interpolate has nothing to compare by: set {VALIDATION_KEYS}")
        if run.is_main:
            _save_model(run, metrics)
    collapsed = run.collapse.at_the_end()
    yield from [Notice(collapsed)] if collapsed else []
    if run.is_main:
        try:
            draw_loss_curve(run.folder.metrics, run.folder.loss_curve)
        except MissingExtraError as missing:
            yield Notice(f"no loss curve is drawn: {missing.message} ({missing.hint})")
        except Exception as problem:
            yield Notice(f"no loss curve is drawn: {one_line(problem)}")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    if run.validation_error:
        raise TrainingError(
            f"the final validation failed: {one_line(run.validation_error)}",
            f"the model is saved without its scores in {run.folder.model}",
        ) from run.validation_error
    finished = Finished(run.step, run.folder.model, metrics, len(run.skipped), run.seconds)
    if run.is_main:
        run.folder.finish(finished)
    yield finished


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it is stored with the model: folders by their last name only, they are the trainer's own."""
    record = recipe.model_dump(mode="json", exclude_none=True)

    def short(value: str | list[str]) -> str | list[str]:
        return [Path(one).name for one in value] if isinstance(value, list) else Path(value).name

    for section, key in PATH_KEYS:
        if key in record[section]:
            record[section][key] = short(record[section][key])
    for section, key in MODEL_KEYS:
        if key in record.get(section, {}):
            record[section][key] = shown_name(record[section][key])
    return record


def _save_model(run: Run, metrics: dict[str, float], card: str | None = None, folder: Path | None = None) -> None:
    run.model.config = run.model.config.model_copy(
        update={
            "inv_tau": float(run.model.inv_tau.detach()),
            "recipe": recipe_record(run.recipe),
            "metrics": metrics,
        }
    )
    if card is None:
        description, skipped = run.recipe.description, len(run.skipped)
        card = trained_model_card(run.model.config, description, started(run), skipped, run.seconds)
    dtype = PRECISIONS[run.recipe.train.save_precision]
    save_model(folder or run.folder.model, run.model, run.tokenizer, card_text=card, dtype=dtype)
