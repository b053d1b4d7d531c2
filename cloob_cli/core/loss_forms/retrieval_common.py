"""What the elements of exp(scores) have in common, and whether scores can go without the maximum of their rows.

E = exp(scores) enters the products as F = E - e f^T with e = exp(biases of the queries), f = exp(biases of the stored).
What is taken out, e (f^T S), is the same for all rows but for their length, and is added in full precision. Where the
elements of a row of E are all much smaller than those of e f^T, the two would cancel: `lowest` says how far that goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.core.gather import RowLayout, largest_over_processes, sum_over_processes
from cloob_cli.core.loss_forms.inputs import LossInputs

# Scores up to this size are exponentiated as they are. Deviations from a mean make up to four times as much of them,
# and exp(80) (float64: exp(600)) leaves room for sums over any batch.
LARGEST_SCORE = {torch.float32: 20.0, torch.float64: 150.0}
# Rows of E whose mean is below exp(this) times that of e f^T could lose more than one digit (float64: two or three).
LOWEST_MEAN = {torch.float32: -3.0, torch.float64: -6.0}


def small_scores(inputs: LossInputs, beta: float) -> bool:
    """Whether all scores can be exponentiated as they are; the same answer on every process."""
    return beta * inputs.largest_norm**2 <= LARGEST_SCORE[inputs.x.dtype]


@dataclass(frozen=True)
class Common:
    """By the names of a matrix and of the one that it meets: e or f [n] of this process's rows, and f^T S [D] of all.

    `lowest` is a lower bound of log(mean of a row of E / mean of this row of e f^T), over all rows of all processes.
    """

    factors: dict[tuple[str, str], Tensor]
    sums: dict[tuple[str, str], Tensor]
    lowest: float


def find_common(
    deviations: dict[str, Tensor],
    means: dict[str, Tensor],
    biases: dict[str, dict[str, Tensor]],
    beta: float,
    layout: RowLayout,
) -> Common:
    """Of matrices with these means [D] over all processes, deviations [n, D] from them and biases [n] (see
    `Embeddings`). The host waits for one number.
    """
    names, stacked = list(means), torch.stack(list(means.values()))
    factors: dict[tuple[str, str], Tensor] = {}
    parts = []
    for name in names:
        with_each = torch.stack(list(biases[name].values()))
        factors |= {(name, other): row for other, row in zip(names, with_each.exp(), strict=True)}
        # Deviations add up to zero, so that f - 1 will do, which is small where all rows are alike.
        less_one = with_each.expm1_()
        parts.append(torch.cat([less_one @ deviations[name], less_one.sum(dim=1, keepdim=True)], dim=1))
    totals = sum_over_processes(torch.stack(parts), layout)
    tilts, weights = totals[..., :-1], totals[..., -1:] + layout.total
    both = tilts + weights * stacked[:, None]
    sums = {(name, other): both[i, j] for i, name in enumerate(names) for j, other in enumerate(names)}
    # By Jensen's inequality, with the mean deviation under the weights f: mean(exp(t)) >= exp(mean(t)).
    tilts = beta * tilts / weights
    bounds = [deviations[name] @ tilts[:, j].T for j, name in enumerate(names)]
    lowest = torch.cat([*bounds, stacked.new_zeros(1, len(names))]).amin()
    return Common(factors, sums, -float(largest_over_processes(-lowest, layout)))
