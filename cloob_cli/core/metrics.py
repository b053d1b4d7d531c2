"""Scores of embeddings and predictions: retrieval recall, top-k accuracy, and the rank of their covariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cloob_cli.core.geometry import covariance_spectrum, directions_for
from cloob_cli.errors import NonFiniteEmbeddingsError


def recall_at_k(queries: Tensor, keys: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Fraction of queries that find their own key among their k nearest, as CLIP_benchmark counts: an equal caption of
    another pair is no hit.

    Keys that are exactly as near as a query's own take its place by chance, as a random order of the equal ones would
    have it: of m equal ones with room for r among the first k, the query counts as r / m of a hit. So embeddings that
    are all the same score k / N, not 0 or 1.

    Args:
        queries, keys: unit-norm [N, D]; query i belongs to key i.
        ks: a k above N counts as N.

    Returns:
        {k: fraction in [0, 1]}.

    Raises:
        ValueError: not as many queries as keys, or none.
        NonFiniteEmbeddingsError: a score is not a finite number.
    """
    if queries.shape != keys.shape or len(queries) == 0:
        raise ValueError(f"each query belongs to one key: {list(queries.shape)} and {list(keys.shape)} do not match")
    found = dict.fromkeys(ks, 0.0)
    for rows in torch.arange(len(queries), device=queries.device).split(1024):  # never the whole N x N matrix
        scores = _finite(queries[rows] @ keys.T)
        own = scores.gather(1, rows[:, None])
        nearer, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1)
        for k in ks:
            found[k] += float(((k - nearer) / equal.double()).clamp(0, 1).sum())
    return {k: hits / len(queries) for k, hits in found.items()}


def top_k_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Fraction of rows of `scores` [N, C] whose label (int64 [N]) is among the k highest; a k above C counts as C.

    Raises:
        ValueError: not as many labels as rows, or none.
        NonFiniteEmbeddingsError: a score is not a finite number.
    """
    if labels.shape != scores.shape[:1] or len(labels) == 0:
        raise ValueError(f"each row has one label: {list(scores.shape)} and {list(labels.shape)} do not match")
    deepest = min(max(ks), scores.shape[1])
    right = _finite(scores).topk(deepest, dim=1).indices == labels[:, None]
    return {k: float(right[:, : min(k, deepest)].any(dim=1).double().mean()) for k in ks}


def _finite(scores: Tensor) -> Tensor:
    if not bool(scores.isfinite().all()):
        raise NonFiniteEmbeddingsError("scores are not finite numbers", "the model's embeddings overflow or are broken")
    return scores


def covariance_rank(embeddings: Tensor, fraction: float = 0.99) -> int:
    """The number of eigenvalues of the embeddings' covariance that make up `fraction` of the variance.

    It measures how many directions of the space are in use; the CLOOB paper (Fürst et al. 2022, section 4.2)
    compares models by it.

    Args:
        embeddings: [N, D], any floating dtype; the eigenvalues are computed in float64.
    """
    return directions_for(covariance_spectrum(embeddings), fraction)
