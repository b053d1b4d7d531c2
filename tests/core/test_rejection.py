"""Rejection scores against their definitions, computed one image at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from margins import EPS, close

from cloob_cli.core.rejection import (
    EMPTY_SIMILARITY,
    cosine_score,
    empty_pattern_share,
    energy_score,
    softmax_score,
)


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


QUERIES, PATTERNS = unit(7, 16, 0), unit(40, 16, 1)


@pytest.mark.numeric
@pytest.mark.parametrize("beta", [1.0, 30.0, 100.0])
def test_the_energy_is_ramsauers_up_to_a_constant(beta: float) -> None:
    queries, patterns = QUERIES.double().numpy(), PATTERNS.double().numpy()
    # Equation 2: E = -lse(beta, X^T q) + q^T q / 2 + log(N) / beta + M^2 / 2, with the largest norm M = 1.
    lse = np.log(np.exp(beta * queries @ patterns.T).sum(axis=1)) / beta
    ramsauer = -lse + (queries**2).sum(axis=1) / 2 + math.log(len(patterns)) / beta + 0.5
    close(
        energy_score(QUERIES, PATTERNS, beta),
        ramsauer - math.log(len(patterns)) / beta,
        "cosines of 16 numbers and a logarithm in float32",
        atol=20 * EPS,
    )


@pytest.mark.numeric
def test_the_plain_scores() -> None:
    cosines = QUERIES.double() @ PATTERNS.double().T
    close(
        cosine_score(QUERIES, PATTERNS).numpy(),
        1 - cosines.max(1).values.numpy(),
        "16 products in float32",
        atol=10 * EPS,
    )
    weights = torch.exp(30 * cosines)
    expected = 1 - (weights / weights.sum(1, keepdim=True)).max(1).values
    close(softmax_score(30 * cosines).numpy(), expected.numpy(), "30 times the error of a cosine", atol=300 * EPS)


@pytest.mark.numeric
def test_the_energy_of_one_pattern_is_its_cosine_score() -> None:
    close(energy_score(QUERIES, PATTERNS[:1], 30.0), cosine_score(QUERIES, PATTERNS[:1]), "a logarithm", atol=20 * EPS)


@pytest.mark.numeric
def test_the_share_is_that_of_the_fixed_point() -> None:
    beta, patterns = 14.3, PATTERNS.double().numpy()
    found = empty_pattern_share(QUERIES, PATTERNS, beta, steps=500)
    for query, share in zip(QUERIES.double().numpy(), found.tolist(), strict=True):
        state = query
        for _ in range(3000):
            logits = np.append(beta * patterns @ state, beta * EMPTY_SIMILARITY)
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            state = weights[:-1] @ patterns
        # It stops where no share moves by 1e-4 in a step; steps shrink, by half at least with these patterns.
        close(share, weights[-1], "a step of 1e-4 and those that follow", atol=1e-3)


def test_what_is_near_no_pattern_falls_to_the_origin() -> None:
    opposite = empty_pattern_share(-PATTERNS[:1], PATTERNS[:1], 14.3)
    same = empty_pattern_share(PATTERNS[:1], PATTERNS[:1], 14.3)
    assert opposite.item() > 0.9
    assert same.item() < 0.1


@pytest.mark.parametrize("beta", [8.0, 30.0])
def test_a_nearer_query_is_better_known(beta: float) -> None:
    near = torch.nn.functional.normalize(PATTERNS[:5] + 0.1 * QUERIES[:5], dim=1)
    assert (energy_score(near, PATTERNS, beta) < energy_score(QUERIES[:5], PATTERNS, beta)).all()
    assert (cosine_score(near, PATTERNS) < cosine_score(QUERIES[:5], PATTERNS)).all()


@pytest.mark.numeric
def test_a_pattern_that_does_not_count_is_as_if_it_were_not_stored() -> None:
    own = torch.arange(7)
    cosine, energy = cosine_score(PATTERNS[:7], PATTERNS, own), energy_score(PATTERNS[:7], PATTERNS, 30.0, own)
    for number in range(7):
        others = PATTERNS[torch.arange(len(PATTERNS)) != number]
        query = PATTERNS[number : number + 1]
        close(cosine[number : number + 1], cosine_score(query, others), "a sum in another order", atol=10 * EPS)
        close(energy[number : number + 1], energy_score(query, others, 30.0), "a sum in another order", atol=20 * EPS)
