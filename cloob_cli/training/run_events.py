"""Make the events of a run on its way: its start, its steps, skipped pairs, scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from statistics import fmean

from accelerate.utils import gather_object

from cloob_cli.errors import Failure, Interrupted, one_line
from cloob_cli.training.build_run import Run
from cloob_cli.training.events import Event, Notice, PairSkipped, Started, StepDone, Validated
from cloob_cli.training.finite_check import check_finite
from cloob_cli.training.report_window import Window, memory_gib


def started(run: Run) -> Started:
    """The event of a run's start."""
    batch_size, processes = run.recipe.train.batch_size, run.accelerator.num_processes
    return Started(
        steps=run.steps,
        first_step=run.step,
        device="cpu" if run.device.type == "cpu" else str(run.device),
        precision=run.progress.precision,
        processes=processes,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        pairs=len(run.data.indices),
        validation_pairs=len(run.data.held_out) if run.data.held_out else 0,
        batch_size=batch_size,
        micro_batch_size=run.train_step.micro_batch_size,
        loss_implementation=", ".join(run.train_step.loss_implementation),
    )


def step_done(run: Run, window: Window, mechanism: dict[str, float]) -> StepDone:
    """The event of the steps in `window`, the last of which is the run's.

    Args:
        mechanism: measures of the retrieval in the last step, where it was looked at.

    Raises:
        NonFiniteLossError: a loss or a gradient is not finite.
    """
    check_finite(run, window)
    run.last_loss = fmean(window.losses())
    per_second = window.images / window.seconds()
    return StepDone(
        step=run.step,
        epoch=run.step / run.loader.batches_per_epoch,
        loss=run.last_loss,
        learning_rate=run.train_step.learning_rate(run.step - 1),
        images_per_second=per_second,
        data_wait_fraction=window.waited / window.seconds(),
        seconds_left=(run.steps - run.step) * run.recipe.train.batch_size / per_second,
        memory_gib=memory_gib(run.device),
        gradient_norm=fmean([norm for norm in window.norms() if math.isfinite(norm)] or [0.0]),
        inv_tau=float(run.model.inv_tau.detach()),
        mechanism=mechanism,
    )


def report_skips(run: Run, skipped: list[Failure]) -> Iterator[Event]:
    """Count, list and report pairs that were not skipped before; every process takes part."""
    if run.accelerator.num_processes > 1:
        skipped = gather_object(skipped)
    for failure in skipped:
        if failure.name not in run.skipped:
            run.skipped.add(failure.name)
            if run.is_main:
                with run.folder.skipped.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(failure._asdict()) + "\n")
            yield PairSkipped(failure.name, failure.reason)


def validate(run: Run) -> Iterator[Event]:
    """Score the model as it is; only the main process computes, the others wait.

    A validation that fails is reported and remembered in `run.validation_error`; it does not end the run.

    Raises:
        Interrupted: stopped meanwhile, where a signal is to be heard at once.
    """
    if not run.validator:
        return
    run.validation_error = None
    if run.is_main:
        try:
            scores = run.validator.run(run.model, run.accelerator.autocast)
            run.stop.check()
        except Interrupted:
            raise
        except Exception as problem:
            run.validation_error = problem
            yield Notice(f"validation failed after step {run.step}: {one_line(problem)}")
        else:
            yield Validated(run.step, scores)
    run.accelerator.wait_for_everyone()
    yield from report_skips(run, run.validator.unreadable())
