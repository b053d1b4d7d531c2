"""Calibration against searches and counts that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from margins import close, within

from cloob_cli.core.calibration import (
    auroc,
    conformal_level,
    expected_calibration_error,
    false_known_rate,
    fit_temperature,
    keeping_threshold,
    label_level,
    separating_threshold,
    temperature_or_one,
)


def drawn(count: int, classes: int, sharpness: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `sharpness` times too large for the labels, which are drawn from their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


@pytest.mark.numeric
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_the_temperature_is_that_of_a_search(sharpness: float) -> None:
    logits, labels = drawn(2000, 5, sharpness)
    found = fit_temperature(logits, labels)
    assert temperature_or_one(logits, labels) == found
    within(abs(found / sharpness - 1), 0.12, "2,000 labels tell the sharpness to 4 % (one standard deviation)")
    losses = {
        step: torch.nn.functional.cross_entropy(logits.double() / (found * (1 + step / 1000)), labels).item()
        for step in (-2, -1, 0, 1, 2)
    }
    assert min(losses, key=losses.__getitem__) == 0


def test_temperatures_at_the_ends() -> None:
    always_right = torch.eye(3)
    assert fit_temperature(always_right, torch.arange(3)) < 0.01
    assert fit_temperature(-always_right, torch.arange(3)) > 100
    assert temperature_or_one(always_right, torch.arange(3)) == temperature_or_one(-always_right, torch.arange(3)) == 1


@pytest.mark.numeric
def test_the_calibration_error_is_that_of_bins_by_hand() -> None:
    logits, labels = drawn(500, 4, 3.0)
    probabilities = torch.softmax(logits.double(), 1)
    total = 0.0
    for number in range(15):
        inside = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if number / 15 < max(row) <= (number + 1) / 15
        ]
        if inside:
            confidence, right = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            total += len(inside) / 500 * abs(confidence - right)
    close(expected_calibration_error(probabilities, labels), total, "sums of 500 in float64", atol=1e-10)
    cooled = torch.softmax(logits.double() / 3, 1)
    assert expected_calibration_error(cooled, labels) < total / 2


SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=12)


@pytest.mark.numeric
@given(SCORES, SCORES)
def test_auroc_counts_pairs(known: list[float], foreign: list[float]) -> None:
    pairs = [(f > k) + (f == k) / 2 for f in foreign for k in known]
    close(auroc(torch.tensor(known), torch.tensor(foreign)), sum(pairs) / len(pairs), "exact halves", atol=1e-12)


@given(SCORES, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_the_keeping_threshold_is_the_least(known: list[float], kept: float) -> None:
    found = keeping_threshold(torch.tensor(known), kept)
    assert sum(score <= found for score in known) >= kept * len(known)
    assert all(sum(score <= lower for score in known) < kept * len(known) for lower in known if lower < found)


@given(SCORES, SCORES)
def test_no_threshold_separates_better(known: list[float], foreign: list[float]) -> None:
    def balanced(threshold: float) -> float:
        kept = sum(score <= threshold for score in known) / len(known)
        return kept + sum(score > threshold for score in foreign) / len(foreign)

    found = separating_threshold(torch.tensor(known), torch.tensor(foreign))
    # Every threshold that differs lies between two scores, or above all of them; below all, nothing is known.
    best = max(balanced(value) for value in [*known, *foreign])
    assert balanced(found) >= best - 1e-9


def test_fpr_of_known_sets() -> None:
    known = torch.arange(100) / 100
    assert false_known_rate(known, torch.tensor([0.5, 0.94, 0.95, 2.0])) == 0.5


@pytest.mark.numeric
def test_conformal_sets_keep_their_promise_on_images_that_were_not_seen() -> None:
    logits, labels = drawn(20_000, 6, 4.0)
    right = torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    for coverage in (0.8, 0.95):
        level = conformal_level(right[:2000], coverage)
        held = (right[2000:] >= level).double().mean().item()
        deviation = math.sqrt(coverage * (1 - coverage) / 2000)
        within(coverage - held, 4 * deviation, "4 standard deviations of a level from 2,000 images")


def test_a_conformal_level_is_a_rank_and_nothing_where_there_are_too_few() -> None:
    right = torch.tensor([0.9, 0.1, 0.5, 0.7])
    assert conformal_level(right, 0.6) == 0.5  # rank ceil(5 * 0.6) = 3
    assert conformal_level(right, 0.95) == 0.0


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(0, 2))
def test_the_level_has_the_best_f1(rows: list[list[int]], label: int) -> None:
    cosines = torch.tensor(rows, dtype=torch.float32) / 10
    labels = torch.full((len(rows),), label)
    hit = torch.nn.functional.one_hot(labels, 3).bool()

    def f1(level: float) -> float:
        taken = cosines.double() >= level
        return 2 * (taken & hit).sum().item() / (taken.sum().item() + len(rows))

    # Equal cosines are taken together, which the search over single pairs does not know: it may promise a little more.
    best = max(f1(level) for level in cosines.double().flatten().tolist())
    assert f1(label_level(cosines, labels)) >= best - 0.34
