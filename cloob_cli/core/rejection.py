"""Scores for how little an image belongs to any known label: the higher, the less known.

Each takes unit-norm embeddings and gives one float32 number an image. Patterns are what is stored as known: the
embeddings of labels, of examples, or of a reference collection.

Sources: Hendrycks & Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples" (maximum
softmax); Ramsauer et al. 2021, "Hopfield Networks is All You Need", equation 2 (the energy). An attractor of its own
for what is unknown is the idea of Moriai et al. 2025, "Rectified Lagrangian for Out-of-Distribution Detection in Modern
Hopfield Networks"; `empty_pattern_share` is not their Lagrangian but plain retrieval with one more pattern, the origin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EMPTY_SIMILARITY = 0.3  # the cosine that the empty pattern stands for (docs/answers.md has the table)
_STEPS = 20
_STILL = 1e-4


def softmax_score(logits: Tensor) -> Tensor:
    """1 - the largest probability: logits [B, C] -> float32 [B] in [0, 1)."""
    return 1 - torch.softmax(logits.float(), dim=-1).amax(-1)


def cosine_score(queries: Tensor, patterns: Tensor, own: Tensor | None = None) -> Tensor:
    """1 - the largest cosine with a pattern: unit-norm [B, D], [N, D] -> float32 [B] in [0, 2].

    `own`, int64 [B], are patterns that do not count for their query: where queries are patterns, themselves.
    """
    return 1 - _cosines(queries, patterns, own).amax(-1)


def energy_score(queries: Tensor, patterns: Tensor, beta: float, own: Tensor | None = None) -> Tensor:
    """The modern Hopfield energy E(x) = -1/beta · log sum_i exp(beta s_i·x) + 1.

    Ramsauer et al. add 1/beta · log N to the constant; it is left out here, so that the score of an image does not
    change with the number of far patterns. With one pattern it is 1 - its cosine, and so it is for a large `beta`.

    Args:
        queries: unit-norm [B, D].
        patterns: unit-norm [N, D], N of at least 1.
        beta: the inverse temperature.
        own: int64 [B], patterns that do not count for their query; None where all count.

    Returns:
        float32 [B].
    """
    return 1 - torch.logsumexp(float(beta) * _cosines(queries, patterns, own), dim=-1) / float(beta)


def empty_pattern_share(queries: Tensor, patterns: Tensor, beta: float, steps: int = _STEPS) -> Tensor:
    """The share of the softmax that an empty pattern at the origin has where retrieval comes to rest.

    Retrieval repeats x <- sum_i w_i s_i with w = softmax of beta s_i·x over the patterns and beta · 0.3 for the origin,
    whose own similarity would be 0: it weighs as much as a pattern that is as near as `EMPTY_SIMILARITY`. An image that
    is near to no pattern falls to the origin, and the share rises to nearly 1.

    Args:
        queries: unit-norm [B, D].
        patterns: unit-norm [N, D].
        beta: the inverse temperature.
        steps: the largest number of retrievals; fewer where no weight changes any more.

    Returns:
        float32 [B] in (0, 1).
    """
    state, patterns, beta = queries.float(), patterns.float(), float(beta)
    empty = torch.full((len(state), 1), beta * EMPTY_SIMILARITY, device=state.device)
    share = torch.zeros(len(state), device=state.device)
    for step in range(steps + 1):
        weights = torch.softmax(torch.cat([beta * state @ patterns.T, empty], dim=1), dim=1)
        moved = (weights[:, -1] - share).abs().amax()
        share = weights[:, -1]
        if step and moved < _STILL:
            break
        state = weights[:, :-1] @ patterns
    return share


def _cosines(queries: Tensor, patterns: Tensor, own: Tensor | None) -> Tensor:
    cosines = queries.float() @ patterns.float().T
    if own is not None:
        cosines[torch.arange(len(own)), own] = -math.inf
    return cosines
