"""Scores of embeddings and predictions: retrieval recall, top-k accuracy, and how many directions are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at_k(queries: Tensor, keys: Tensor, relevance: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries that find a right key among their k nearest.

    Args:
        queries, keys: unit-norm [N, D]; query i belongs to key i.
        relevance: int64 [N]; key j is right for query i where relevance[i] == relevance[j] (pairs with the very same
            caption cannot be told apart, so each other's pictures count as found). `torch.arange(N)` counts only i.
        ks: a k above N counts as N.

    Returns:
        {k: share in [0, 1]}.
    """
    count, deepest = len(queries), min(max(ks), len(keys))
    found = torch.zeros(deepest, dtype=torch.float64)
    for rows in torch.arange(count, device=queries.device).split(1024):  # never the whole N x N matrix
        nearest = (queries[rows] @ keys.T).topk(deepest, dim=1).indices
        right = relevance[nearest] == relevance[rows, None]
        found += right.cummax(dim=1).values.double().sum(dim=0).cpu()
    return {k: float(found[min(k, deepest) - 1] / count) for k in ks}


def top_k_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Share of rows of `scores` [N, C] whose label (int64 [N]) is among the k highest; a k above C counts as C."""
    deepest = min(max(ks), scores.shape[1])
    right = scores.topk(deepest, dim=1).indices == labels[:, None]
    return {k: float(right[:, : min(k, deepest)].any(dim=1).double().mean()) for k in ks}


def covariance_rank(embeddings: Tensor, share: float = 0.99) -> int:
    """How many eigenvalues of the embeddings' covariance make up `share` of the variance.

    A measure of how many directions of the space are in use; the CLOOB paper (Fürst et al. 2022, section 4.2)
    compares models by it.

    Args:
        embeddings: [N, D], any floating dtype; the eigenvalues are computed in float64.
    """
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp(min=0)
    explained = eigenvalues.cumsum(0) / eigenvalues.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return min(len(eigenvalues), int((explained < share).sum()) + 1)
