"""Retrieval looked at: effective patterns, fixed points and energies of stores whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from margins import close, within

from cloob_cli.core import hopfield
from cloob_cli.core.hopfield import (
    distinct,
    effective_patterns,
    energy,
    fixed_points,
    nearest_patterns,
    retrieve,
)
from cloob_cli.core.loss import hopfield_retrieve
from cloob_cli.evaluation.analysis import ends

ROUNDING = "float32 sums over some dozens of patterns"


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def three_clusters() -> torch.Tensor:
    """Tight groups of 10, 8 and 6 patterns at right angles."""
    centers = torch.eye(16)[:3].repeat_interleave(torch.tensor([10, 8, 6]), 0)
    return torch.nn.functional.normalize(centers + 0.02 * unit(24, 16, 0), dim=1)


@pytest.mark.numeric
def test_retrieval_in_slices_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopfield, "_ROWS", 7)
    queries, stored = unit(30, 8, 0), unit(20, 8, 1)
    close(retrieve(queries, stored, 14.3), hopfield_retrieve(queries, stored, 14.3), ROUNDING, atol=1e-6)
    close(effective_patterns(queries, stored, 1e-6), torch.full((30,), 20.0), ROUNDING, atol=1e-4)
    weights = torch.softmax(14.3 * queries.double() @ stored.double().T, dim=1)
    expected = torch.exp(-(weights * weights.log()).sum(dim=1))
    close(effective_patterns(queries, stored, 14.3).double(), expected, ROUNDING, rtol=1e-4)
    top, numbers = nearest_patterns(queries, stored, 14.3, 3)
    close(top.double(), weights.topk(3, dim=1).values, ROUNDING, atol=1e-5)
    assert torch.equal(numbers, weights.topk(3, dim=1).indices)


@pytest.mark.numeric
def test_the_energy_is_ramsauers_and_falls() -> None:
    queries, stored = unit(10, 8, 0), unit(20, 8, 1)
    beta = 5.0
    constant = math.log(20) / beta + 0.5
    by_hand = [
        -torch.logsumexp(beta * (stored.double() @ q), 0) / beta + q @ q / 2 + constant for q in queries.double()
    ]
    close(energy(queries, stored, beta).double(), torch.stack(by_hand), ROUNDING, atol=1e-5)
    found = fixed_points(queries, stored, beta)
    after = energy(found.points, stored, beta)
    assert (after <= energy(queries, stored, beta) + 1e-6).all()
    assert (after >= 0).all()
    moved = torch.softmax(beta * found.points @ stored.T, dim=1) @ stored
    within((moved - found.points).norm(dim=1).max(), 2e-5, "twice the tolerance of the iteration")


def test_a_sharp_retrieval_ends_in_single_patterns() -> None:
    patterns = torch.eye(12)
    found = ends(patterns, 50.0)
    assert (found["distinct"], found["single"], found["cluster"], found["global"]) == (12, 1.0, 0.0, 0.0)


def test_a_flat_retrieval_ends_in_the_mean_of_all() -> None:
    found = ends(torch.eye(12), 0.5)
    assert (found["distinct"], found["single"], found["cluster"], found["global"]) == (1, 0.0, 0.0, 1.0)
    assert found["effective_patterns"] > 11.9
    assert found["energy_after"] < found["energy_before"]


def test_tight_groups_end_in_clusters() -> None:
    found = ends(three_clusters(), 10.0)
    assert (found["distinct"], found["single"], found["cluster"], found["global"]) == (3, 0.0, 1.0, 0.0)
    assert found["largest"] == [10, 8, 6]
    assert found["converged"] == 1.0


def test_groups_are_numbered_by_their_first_points() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.001, 0.0], [1.0, 0.002]])
    assert distinct(points).tolist() == [0, 1, 0, 1]


def test_what_still_moves_is_told() -> None:
    assert not fixed_points(unit(5, 8, 0), unit(20, 8, 1), 5.0, iterations=1).converged.any()
