"""Bootstrap confidence intervals of means: the examples are drawn anew with replacement (Efron 1979)."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def mean_intervals(
    values: Tensor, weights: Tensor, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[tuple[float, float]]:
    """Percentile intervals of weighted means over N examples.

    Args:
        values: [M, N], M measures of each example.
        weights: [M, N], how much an example counts in each measure; the mean is sum(weights · values) / sum(weights).
        resamples: how many samples of N examples are drawn.
        confidence: the fraction of their means that lies in the interval.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        (low, high) of each of the M means.
    """
    generator = np.random.default_rng(seed)
    share = weights.double().cpu().numpy()
    amount = share * values.double().cpu().numpy()
    examples = amount.shape[1]
    means = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(examples, size=examples), minlength=examples).astype(np.float64)
        means.append((amount @ drawn) / np.maximum(share @ drawn, np.finfo(np.float64).tiny))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.array(means), [tail, 1 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
