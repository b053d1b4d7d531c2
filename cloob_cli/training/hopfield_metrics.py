"""Hopfield retrieval while it is trained: how many patterns of a batch answer a query, and a notice where all do.

Where nearly all stored patterns answer every query alike, retrieval gives one average for all of them and the loss no
gradient (docs/loss.md).
"""

from __future__ import annotations

from torch import Tensor

from cloob_cli.core.hopfield import effective_patterns
from cloob_cli.evaluation.analysis import ends
from cloob_cli.recipe import ObjectiveSection

REPORTS_BETWEEN = 10  # of `train.log_every` steps: so many pass between two looks
_ROWS = 256  # of a batch that are looked at
_ITERATIONS = 100  # of the update rule: what still moves then is near its end
_ALL = 0.9  # of the stored patterns: so many answer effectively where retrieval has collapsed
_TIMES = 2  # looks in a row before it is told


def measure(images: Tensor, texts: Tensor, beta: float) -> dict[str, float]:
    """The effective number of patterns and the fraction that ends in the global mean, by names in metrics.jsonl.

    Args:
        images, texts: unit-norm [N, D] of one batch; at most 256 rows are looked at.
    """
    found = {}
    for kind, embeddings in (("image", images), ("text", texts)):
        rows = embeddings[:_ROWS].detach().float().cpu()
        found[f"mechanism/effective_patterns/{kind}"] = float(effective_patterns(rows, rows, beta).median())
        found[f"mechanism/global_mean/{kind}"] = ends(rows, beta, _ITERATIONS)["global"]
    return found | {"mechanism/patterns": float(min(len(images), _ROWS))}


class MechanismWatch:
    """Looks at a batch now and then; tells once where retrieval has collapsed.

    Args:
        every: steps between two looks.
        from_step: where retrieval is switched on; before that it is measured and not judged.
    """

    def __init__(self, objective: ObjectiveSection, every: int, from_step: int) -> None:
        self._objective, self._every, self._from = objective, every, from_step
        self._active = objective.name in ("cloob", "clip_hopfield")
        self._times, self._told = 0, False

    def wants(self, step: int) -> bool:
        """True where the batch of step `step` (from 1) is to be looked at."""
        return self._active and step % self._every == 0

    def look(self, step: int, images: Tensor, texts: Tensor) -> tuple[dict[str, float], str | None]:
        """The measures of a batch after `step` steps, and a notice, once, where retrieval has collapsed."""
        metrics = measure(images, texts, self._objective.scale_hopfield)
        stored = metrics["mechanism/patterns"]
        fewest = min(metrics[f"mechanism/effective_patterns/{kind}"] for kind in ("image", "text"))
        collapsed = step > self._from and stored > 1 and fewest > _ALL * stored
        self._times = self._times + 1 if collapsed else 0
        if self._times < _TIMES or self._told:
            return metrics, None
        self._told = True
        return metrics, (
            f"retrieval has collapsed: {fewest:.0f} of {stored:.0f} stored patterns answer every query, so that all "
            "get the same answer; raise objective.scale_hopfield, or lengthen objective.hopfield_warmup"
        )


def first_rows(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a batch's embeddings that `measure` looks at, [n, D] each, of texts [N, k, D] the first caption's."""
    return images[:_ROWS].detach(), texts[:_ROWS, 0].detach()
