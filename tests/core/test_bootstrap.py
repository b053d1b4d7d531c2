"""Bootstrap intervals: their width, and their repeatability."""

from __future__ import annotations

import math

import pytest
import torch
from margins import within

from cloob_cli.core.bootstrap import mean_intervals


@pytest.mark.numeric
def test_the_interval_of_a_fraction_has_the_width_of_its_binomial() -> None:
    hits = (torch.arange(1000) < 200).double()[None]
    [(low, high)] = mean_intervals(hits, torch.ones_like(hits))
    half = 1.96 * math.sqrt(0.2 * 0.8 / 1000)
    # An end of 1,000 resamples has a standard error of 1 / (density · sqrt(1,000)): 0.0011 here; 4 of them.
    reason = "four standard errors of a quantile of 1,000 draws"
    within(abs(low - (0.2 - half)), 0.0044, reason)
    within(abs(high - (0.2 + half)), 0.0044, reason)


def test_intervals_are_repeatable_and_nested() -> None:
    values = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(values)
    assert mean_intervals(values, ones) == mean_intervals(values, ones)
    assert mean_intervals(values, ones) != mean_intervals(values, ones, seed=1)
    for (low, high), (lower, higher) in zip(
        mean_intervals(values, ones, confidence=0.5), mean_intervals(values, ones), strict=True
    ):
        assert lower < low < high < higher


def test_weights_are_those_of_the_examples() -> None:
    values, weights = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    [(low, high)] = mean_intervals(values, weights, 200)
    assert high == 1.0
    assert low in (0.0, 1.0)  # a draw may hold only the example without weight
