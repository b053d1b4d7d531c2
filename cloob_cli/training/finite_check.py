"""Stop a run whose numbers are not finite."""

from __future__ import annotations

import math

from cloob_cli.errors import NonFiniteLossError
from cloob_cli.training.build_run import Run
from cloob_cli.training.report_window import Window


def check_finite(run: Run, window: Window) -> None:
    """Raise NonFiniteLossError where a loss or a gradient in `window` is not finite."""
    losses = window.losses()
    for step, (loss, norm) in enumerate(zip(losses, window.norms(), strict=True), run.step - len(losses) + 1):
        if not math.isfinite(loss):
            raise not_finite(run, "the loss is", step)
        # In fp16 a step whose gradient overflows is left out and the scale lowered: that is no failure.
        if not math.isfinite(norm) and run.progress.precision != "fp16":
            raise not_finite(run, "the gradient is", step)


def not_finite(run: Run, what: str, step: int) -> NonFiniteLossError:
    """The error that ends a run whose numbers are not finite, with the checkpoint that is left."""
    saved = f"the last valid checkpoint is {run.checkpoint}" if run.checkpoint else "no checkpoint was saved before it"
    return NonFiniteLossError(
        f"{what} no longer finite at step {step}; {saved}",
        "try a lower optimizer.learning_rate, more warm-up, a smaller optimizer.gradient_clip "
        'or train.precision = "fp32"',
    )
