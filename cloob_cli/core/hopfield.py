"""Retrieval from a modern Hopfield network, looked at: how many patterns answer, where the iteration ends, the energy.

Source: Ramsauer et al. 2021, "Hopfield Networks is All You Need". beta is `scale_hopfield`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.core.loss.definition import hopfield_retrieve

_ROWS = 1024  # queries in one pass


@dataclass(frozen=True)
class FixedPoints:
    """The ends of the iteration.

    Attributes:
        points: float32 [N, D].
        patterns: float32 [N], the effective number of patterns that make up each.
        converged: bool [N]; the others still moved when the iterations were used up.
    """

    points: Tensor
    patterns: Tensor
    converged: Tensor


def retrieve(queries: Tensor, stored: Tensor, beta: float) -> Tensor:
    """`hopfield_retrieve`, the retrieval that the loss uses, without holding all N x M scores."""
    return torch.cat([hopfield_retrieve(part, stored, beta) for part in queries.split(_ROWS)])


def effective_patterns(queries: Tensor, stored: Tensor, beta: float) -> Tensor:
    """The effective number of stored patterns that answer each query: exp of the entropy of softmax(beta q S^T).

    Args:
        queries: [N, D]. stored: [M, D].

    Returns:
        float32 [N], from 1 (a single pattern) to M (all alike).
    """
    return torch.cat([_effective(_weights(part, stored, beta)) for part in queries.split(_ROWS)])


def nearest_patterns(queries: Tensor, stored: Tensor, beta: float, count: int) -> tuple[Tensor, Tensor]:
    """(weights, numbers), each [N, count]: the stored patterns that answer each query most, the first the most."""
    tops = [_weights(part, stored, beta).topk(min(count, len(stored)), dim=1) for part in queries.split(_ROWS)]
    return torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])


def energy(queries: Tensor, stored: Tensor, beta: float) -> Tensor:
    """The energy of each query, float32 [N] (Ramsauer et al., equation 2).

    E = -lse(beta, q S^T) + 1/2 q.q + log(M) / beta + 1/2 max |s|^2, which is never negative; the update rule lowers it.
    """
    largest = float(stored.square().sum(dim=1).max())
    return torch.cat(
        [
            -torch.logsumexp(beta * part @ stored.T, dim=1) / beta
            + part.square().sum(dim=1) / 2
            + math.log(len(stored)) / beta
            + largest / 2
            for part in queries.split(_ROWS)
        ]
    )


def fixed_points(
    queries: Tensor, stored: Tensor, beta: float, iterations: int = 1000, tolerance: float = 1e-5
) -> FixedPoints:
    """Iterate the update rule q <- softmax(beta q S^T) S of each query until it moves less than `tolerance`."""
    points = queries.clone()
    converged = torch.zeros(len(queries), dtype=torch.bool)
    for rows in torch.arange(len(queries)).split(_ROWS):
        moving = rows
        for _ in range(iterations):
            now = points[moving]
            after = torch.softmax(beta * now @ stored.T, dim=1) @ stored
            points[moving] = after
            still = (after - now).norm(dim=1) >= tolerance
            converged[moving[~still]] = True
            moving = moving[still]
            if not len(moving):
                break
    return FixedPoints(points, effective_patterns(points, stored, beta), converged)


def distinct(points: Tensor, radius: float = 1e-2) -> Tensor:
    """Group points that lie within `radius` of one another's first: int64 [N], the number of each one's group.

    Groups are numbered by their first points. `radius` is far above the tolerance of `fixed_points`, since an iteration
    that converges slowly stops before its end.
    """
    groups = torch.full((len(points),), -1, dtype=torch.int64)
    count = 0
    while bool((left := groups < 0).any()):
        first = int(left.nonzero()[0, 0])
        groups[left & ((points - points[first]).norm(dim=1) < radius)] = count
        count += 1
    return groups


def _weights(queries: Tensor, stored: Tensor, beta: float) -> Tensor:
    return torch.softmax(beta * queries @ stored.T, dim=1)


def _effective(weights: Tensor) -> Tensor:
    return torch.exp(torch.special.entr(weights).sum(dim=1))
