"""Recall of image-text retrieval with several captions an image, in memory that does not grow with the set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.errors import NonFiniteEmbeddingsError

# Cosines of unit vectors in float32 carry a rounding of some 1e-7, which differs between equal captions by where they
# stand in a matrix. Nearer than this, two keys are as near as each other.
TIE = 1e-6

_ROWS = 65536  # pairs whose own scores are computed at a time
_QUERIES, _KEYS = 4096, 2048  # rows and columns of the scores that are held at a time


@dataclass(frozen=True)
class Places:
    """For each query the number of wrong keys that stand before its own nearest one, at most `deepest`.

    Attributes:
        against: int64 [Q]; wrong keys that are exactly as near stand before it.
        in_favor: int64 [Q]; they stand behind it.
    """

    against: Tensor
    in_favor: Tensor

    def hits(self, k: int) -> Tensor:
        """bool [Q]: the queries with one of their own among the k nearest keys, ties counted against them."""
        return self.against < k

    @property
    def ties(self) -> int:
        """The number of queries whose place depends on how ties are counted."""
        return int((self.in_favor < self.against).sum())


def retrieval_places(images: Tensor, texts: Tensor, owners: Tensor, deepest: int = 10) -> tuple[Places, Places]:
    """The places of both directions: image to text (an image's nearest own caption counts) and text to image.

    Scores are computed in tiles, and a query that has `deepest` nearer wrong keys is dropped.

    Args:
        images: unit-norm [N, D].
        texts: unit-norm [T, D]; text t is a caption of image `owners[t]`, every image has at least one.
        owners: int64 [T].
        deepest: the largest k that will be asked for.

    Raises:
        ValueError: an image without a caption, or not one owner a text.
        NonFiniteEmbeddingsError: an embedding is not finite.
    """
    if len(owners) != len(texts) or len(owners.unique()) != len(images) or len(images) == 0:
        raise ValueError(f"{len(images)} images, {len(texts)} texts and {len(owners)} owners do not match")
    if not all(bool(part.isfinite().all()) for part in (*images.split(_ROWS), *texts.split(_ROWS))):
        raise NonFiniteEmbeddingsError("embeddings are not finite numbers", "the model overflows or is broken")
    rows = torch.arange(len(texts), device=texts.device).split(_ROWS)
    own = torch.cat([(images[owners[part]] * texts[part]).sum(dim=1) for part in rows])
    best = torch.full((len(images),), -torch.inf, device=own.device, dtype=own.dtype)
    best = best.scatter_reduce(0, owners, own, "amax")
    # An image's own captions pass the same comparisons as the wrong ones, so they are taken off beforehand.
    zeros = torch.zeros(len(images), dtype=torch.int64, device=own.device)
    own_against = zeros.index_add(0, owners, (own >= best[owners] - TIE).long())
    own_in_favor = zeros.index_add(0, owners, (own > best[owners] + TIE).long())
    image_to_text = _places(images, texts, best, own_against, own_in_favor, deepest)
    ones = torch.ones(len(texts), dtype=torch.int64, device=own.device)
    text_to_image = _places(texts, images, own, ones, torch.zeros_like(ones), deepest)
    return image_to_text, text_to_image


def _places(
    queries: Tensor, keys: Tensor, own: Tensor, own_against: Tensor, own_in_favor: Tensor, deepest: int
) -> Places:
    against, in_favor = -own_against, -own_in_favor
    alive = torch.arange(len(queries), device=queries.device)
    for start in range(0, len(keys), _KEYS):
        tile = keys[start : start + _KEYS].T
        for rows in alive.split(_QUERIES):
            scores = queries[rows] @ tile
            against[rows] += (scores >= own[rows, None] - TIE).sum(dim=1)
            in_favor[rows] += (scores > own[rows, None] + TIE).sum(dim=1)
        alive = alive[in_favor[alive] < deepest]
    # A query that was dropped may not have met its own keys yet, which were taken off beforehand.
    against = torch.maximum(against, in_favor)
    return Places(against.clamp(0, deepest), in_favor.clamp(0, deepest))
