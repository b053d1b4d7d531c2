"""The training loop: a run is built and trained, as a stream of events."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from cloob_cli.data.batch import PairBatch
from cloob_cli.errors import DataError, Failure, Interrupted, LossInputError, NonFiniteEmbeddingsError
from cloob_cli.recipe import Recipe
from cloob_cli.training import processes
from cloob_cli.training.build_run import Run, build_run
from cloob_cli.training.checkpoints import full_disk_as_error, save_checkpoint
from cloob_cli.training.events import CheckpointSaved, Event, Notice, StepDone, Validated
from cloob_cli.training.finish_run import finish
from cloob_cli.training.finite_check import check_finite, not_finite
from cloob_cli.training.interrupt import stop_on_signals
from cloob_cli.training.metrics_file import MetricsFile, read_rows
from cloob_cli.training.report_window import Window
from cloob_cli.training.run_events import report_skips, started, step_done, validate
from cloob_cli.training.schedules import image_size


def train_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    acknowledge: Callable[[str], None] | None = None,
    find_model: Callable[[str], Path] = Path,
) -> Generator[Event, None, None]:
    """Train what `recipe` says in the run folder `folder`, yielding events as they happen.

    Under `accelerate launch` every process calls this; events come out on the main one only.

    Args:
        device: see `core.device.pick_device`.
        resume: go on from the newest valid checkpoint in `folder`, or start where there is none. A run that is done is
            left as it is; its `Finished` is the only event.
        acknowledge: told at once, from another thread, that a signal has arrived and what happens now.
        find_model: the folder of a model that the recipe names.

    Raises:
        UsageError: `folder` holds something else, a run that is not to be resumed or has another recipe, or one that
            another process works on.
        DataError: the data cannot be opened or holds less than a batch.
        DeviceError: no such device.
        NonFiniteLossError: the loss or the gradient is no longer a number.
        TrainingError: the processes of the run do not mean the same run, or the final validation failed.
        DiskSpaceError: no room for a checkpoint or the model.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    main = os.environ.get("RANK", "0") == "0"
    with stop_on_signals(acknowledge if main else None) as stop:

        def build_and_train() -> Generator[Event, None, None]:
            run = yield from build_run(recipe, folder, device=device, resume=resume, stop=stop, find_model=find_model)
            if run is not None:
                with closing(run):
                    yield from train(run)

        with closing(build_and_train()) as events:
            for event in events:
                if processes.is_main():
                    yield event


def train(run: Run) -> Iterator[Event]:
    """Train a run to its end and write the model, yielding events. Raises what `train_recipe` does."""
    yield started(run)

    def how_to_go_on() -> str:
        saved = f"the newest checkpoint is {run.checkpoint}" if run.checkpoint else "no checkpoint was saved"
        return f"{saved}; make room, then give the same command with --resume"

    with full_disk_as_error(run.folder.path, how_to_go_on):
        metrics_file = MetricsFile(run.folder.metrics, run.step) if run.is_main else None
        unusable = run.data.unusable if run.is_main else []
        with closing(metrics_file) if metrics_file else nullcontext():  # which writes once more what did not fit
            for event in chain(report_skips(run, unusable), _steps(run), finish(run)):
                if metrics_file and isinstance(event, StepDone | Validated):
                    metrics_file.add(event)
                yield event


def batches(run: Run) -> Generator[PairBatch, None, None]:
    """The batches of a run from its next step on, epoch after epoch, without end."""

    def size_of(epoch: int, number: int) -> int:
        step = epoch * run.loader.batches_per_epoch + number
        return image_size(run.recipe.train.image_sizes, step, run.steps, run.model.config.vision.image_size)

    epoch, first = divmod(run.step, run.loader.batches_per_epoch)
    while True:
        yield from run.loader.batches(epoch, first, partial(size_of, epoch))
        epoch, first = epoch + 1, 0


def _steps(run: Run) -> Iterator[Event]:
    section, window = run.recipe.train, Window()
    skipped: list[Failure] = []
    if _lacks_validation(run):
        yield from _validate_on_the_way(run)
    with closing(batches(run)) as coming:
        while run.step < run.steps:
            with window.waiting():
                batch = next(coming)
            run.stop.check()
            run.train_step.observe = run.is_main and run.mechanism.wants(run.step + 1)
            try:
                window.add(*run.train_step(batch, run.step), images=section.batch_size)
            except NonFiniteEmbeddingsError:
                check_finite(run, window)
                raise not_finite(run, "the embeddings are", run.step + 1) from None
            except LossInputError as problem:
                raise _too_few(batch, run.step + 1) or problem from None
            run.step += 1
            run.stop.nothing_to_save = None
            skipped += batch.skipped
            measures: dict[str, float] = {}
            if run.train_step.observe and run.train_step.observed:
                with window.paused():
                    measures, notice = run.mechanism.look(run.step, *run.train_step.observed)
                yield from [Notice(notice)] if notice else []
            last, stopping = run.step == run.steps, _any_process(run, run.stop.requested)
            saving = last or stopping or run.step % section.checkpoint_every == 0
            if saving or run.step % section.log_every == 0:
                yield step_done(run, window, measures)
                collapsed = run.collapse.add(run.step, window.losses())
                yield from [Notice(collapsed)] if collapsed else []
                yield from report_skips(run, skipped)
                window, skipped = Window(), []
            with window.paused():
                if saving:
                    yield _save_checkpoint(run)
                if stopping and not last:
                    text = f"stopped at step {run.step} of {run.steps}; the run is saved"
                    raise Interrupted(text, "the same command with --resume goes on")
                every = run.recipe.validation.every
                if every and run.step % every == 0 and not last:
                    yield from _validate_on_the_way(run)


def _validate_on_the_way(run: Run) -> Iterator[Event]:
    with run.ema.applied_to(run.model) if run.ema else nullcontext():
        yield from validate(run)


def _lacks_validation(run: Run) -> bool:
    """True where a run goes on from a step whose validation did not come about any more."""
    every = run.recipe.validation.every
    if not every or not run.step or run.step % every or run.step == run.steps:
        return False

    def lacks() -> bool:
        return not any(row["step"] == run.step and "loss" not in row for row in read_rows(run.folder.metrics))

    return processes.on_main(lacks)


def _too_few(batch: PairBatch, step: int) -> DataError | None:
    """The error that says which pairs of a batch are missing; None where none is."""
    if not batch.skipped:
        return None
    first = batch.skipped[0]
    return DataError(
        f"too few pairs of the batch of step {step} can be read; {first.name}: {first.reason}",
        "repair or remove such pairs, or use a larger train.batch_size",
    )


def _any_process(run: Run, flag: bool) -> bool:
    """True where `flag` is true in any process of the run."""
    if run.accelerator.num_processes == 1:
        return flag
    raised = torch.tensor(float(flag), device=run.device)
    return float(run.accelerator.reduce(raised, "sum")) > 0


def _save_checkpoint(run: Run) -> CheckpointSaved:
    # The last update may have broken the weights although its loss and gradient were finite.
    if not all(bool(parameter.isfinite().all()) for parameter in run.model.parameters()):
        raise not_finite(run, "the weights are", run.step)
    if run.is_main:
        run.checkpoint = save_checkpoint(
            run.folder.checkpoints,
            run.progress,
            run.model,
            run.train_step.optimizer,
            run.accelerator.scaler,
            run.ema,
            run.recipe.train.keep_checkpoints,
            run.train_step.projection,
        )
    run.accelerator.wait_for_everyone()
    return CheckpointSaved(run.step, run.checkpoint or run.folder.checkpoints)
