"""Notice a run whose embeddings have all become the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from cloob_cli.recipe import ObjectiveSection

# Chance moves the mean loss of equal embeddings by their rounding alone; a run that learns leaves this band at once.
_NEAR_COLLAPSE = 0.01  # of a loss in nats
_COLLAPSED_STEPS = 100  # steps at that value before it is told
_COLLAPSED_STEPS_AT_END = 20  # steps at that value that are told once the run is over


class CollapseWatch:
    """Notices a run whose embeddings have all become the same: its loss sticks at the value that equal scores give.

    Counts the steps after the warm-ups with such a loss.

    Args:
        warm_up: steps in which such a loss is usual.
    """

    def __init__(self, objective: ObjectiveSection, batch_size: int, warm_up: int) -> None:
        # InfoLOOB leaves the positive out of the denominator, InfoNCE keeps it.
        leaves_out = objective.name in ("cloob", "infoloob")
        self._name = "log(batch size - 1)" if leaves_out else "log(batch size)"
        self._value = math.log(batch_size - leaves_out)
        self._warm_up, self._steps, self._told = warm_up, 0, False

    def add(self, step: int, losses: Sequence[float]) -> str | None:
        """Take the losses of the steps up to `step`; a notice, once, where they stick."""
        stuck = step - len(losses) >= self._warm_up and abs(fmean(losses) - self._value) < _NEAR_COLLAPSE
        self._steps = self._steps + len(losses) if stuck else 0
        if self._steps >= _COLLAPSED_STEPS and not self._told:
            self._told = True
            return self._text()
        return None

    def at_the_end(self) -> str | None:
        """A notice about a run that ends like this."""
        return self._text() if self._steps >= _COLLAPSED_STEPS_AT_END else None

    def _text(self) -> str:
        return (
            f"the loss has been {self._name} = {self._value:.3f} for {self._steps} steps: all embeddings are the same "
            "and nothing is learned; lengthen optimizer.warmup_steps or objective.hopfield_warmup, or lower "
            "optimizer.learning_rate"
        )
