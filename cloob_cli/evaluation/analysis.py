"""The paper's measurements on the pairs of a data set: geometry of the embeddings, and what retrieval makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cloob_cli.core.geometry import (
    ajne,
    alignment,
    covariance_spectrum,
    directions_for,
    effective_rank,
    modality_gap,
    uniformity,
)
from cloob_cli.core.hopfield import (
    distinct,
    effective_patterns,
    energy,
    fixed_points,
    nearest_patterns,
    retrieve,
)
from cloob_cli.core.zero_shot import fill_template
from cloob_cli.data.captioned_images import CaptionedSet
from cloob_cli.data.labeled_set import ClassificationSet
from cloob_cli.evaluation.embeddings import Embedder, OnImage
from cloob_cli.evaluation.evaluate import DataSet

SCALES = (8.0, 14.3, 30.0, 100.0)  # of the paper's code, its released models' loss, and beyond
FRACTION = 0.99  # of the variance, as the paper counts eigenvalues
_SINGLE = 1.5  # effective patterns: at most so many are one pattern
_GLOBAL = 0.5  # of all patterns: more are the global mean
_RADIUS = 1e-2  # within which two fixed points are one (`core.hopfield.distinct`)
_EXAMPLES, _TOGETHER = 8, 5


@dataclass(frozen=True)
class Pairs:
    """Unit-norm embeddings [N, D] of images and of a text of each, and what the pairs are called."""

    images: Tensor
    texts: Tensor
    names: list[str]
    skipped: int = 0


def embed_pairs(embedder: Embedder, data: DataSet, chosen: Sequence[int], on_image: OnImage | None = None) -> Pairs:
    """Embed images with one text each: the first caption, or the class's name in the first template.

    Raises:
        DataError: not one image can be read.
    """
    images = embedder.images(data, chosen, on_image)
    texts = [_text(data, index) for index in images.indices]
    return Pairs(images.embeddings, embedder.texts(texts), texts, len(images.failures))


def geometry(images: Tensor, texts: Tensor) -> dict[str, Any]:
    """The measures of paired embeddings, unit-norm [N, D] each."""
    found: dict[str, Any] = {}
    for name, embeddings in (("image", images), ("text", texts)):
        eigenvalues = covariance_spectrum(embeddings)
        found[name] = {
            "eigenvalues_99": directions_for(eigenvalues, FRACTION),
            "effective_rank": effective_rank(eigenvalues),
            "uniformity": uniformity(embeddings),
            "ajne": ajne(embeddings),
        }
    return found | {"alignment": alignment(images, texts), "modality_gap": modality_gap(images, texts)}


def after_retrieval(pairs: Pairs, beta: float) -> dict[str, Any]:
    """The same measures after retrieval with one `scale_hopfield`, from the stored images and from the stored texts."""
    found: dict[str, Any] = {"scale_hopfield": beta}
    for name, stored in (("from_images", pairs.images), ("from_texts", pairs.texts)):
        measures = geometry(retrieve(pairs.images, stored, beta), retrieve(pairs.texts, stored, beta))
        for kind, queries in (("image", pairs.images), ("text", pairs.texts)):
            counts = effective_patterns(queries, stored, beta)
            measures[kind]["effective_patterns"] = {"mean": float(counts.mean()), "median": float(counts.median())}
        own = pairs.images if name == "from_images" else pairs.texts
        found[name] = measures | {"fixed_points": ends(own, beta), "together": _together(own, pairs.names, beta)}
    return found


def ends(patterns: Tensor, beta: float, iterations: int = 1000) -> dict[str, Any]:
    """The ends of the iterated update rule for each pattern among all patterns [N, D], and the energy there.

    A fixed point is a single pattern where at most 1.5 answer effectively; the global mean where more than half of all
    patterns answer, or where it is the only one; and a cluster otherwise.
    """
    found = fixed_points(patterns, patterns, beta, iterations)
    groups = distinct(found.points, _RADIUS)
    single = found.patterns <= _SINGLE
    everywhere = ~single & ((found.patterns > _GLOBAL * len(patterns)) | (groups.max() == 0))
    before, after = energy(patterns, patterns, beta), energy(found.points, patterns, beta)
    return {
        "distinct": int(groups.max()) + 1,
        "single": float(single.double().mean()),
        "cluster": float((~single & ~everywhere).double().mean()),
        "global": float(everywhere.double().mean()),
        "effective_patterns": float(found.patterns.median()),
        "converged": float(found.converged.float().mean()),
        "energy_before": float(before.mean()),
        "energy_after": float(after.mean()),
        "largest": torch.bincount(groups).sort(descending=True).values[:5].tolist(),
    }


def spectra(pairs: Pairs) -> dict[str, list[float]]:
    """The eigenvalues of both covariances, the largest first."""
    return {
        "image": covariance_spectrum(pairs.images).tolist(),
        "text": covariance_spectrum(pairs.texts).tolist(),
    }


def _together(patterns: Tensor, names: Sequence[str], beta: float) -> list[dict[str, Any]]:
    """A few patterns with those that they retrieve, by their names and weights."""
    rows = torch.arange(0, len(patterns), max(1, len(patterns) // _EXAMPLES))[:_EXAMPLES]
    weights, numbers = nearest_patterns(patterns[rows], patterns, beta, _TOGETHER)
    return [
        {
            "query": names[row],
            "retrieved": [
                {"name": names[number], "weight": weight} for weight, number in zip(w.tolist(), n.tolist(), strict=True)
            ],
        }
        for row, w, n in zip(rows.tolist(), weights, numbers, strict=True)
    ]


def _text(data: DataSet, index: int) -> str:
    if isinstance(data, CaptionedSet):
        return data.captions[index][0]
    assert isinstance(data, ClassificationSet)
    return fill_template(data.templates[0], data.texts[data.labels[index]][0])
