"""Fit what turns scores into trustworthy answers, from images whose labels are known.

Sources: Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature scaling, expected calibration error);
Sadinle, Lei & Wasserman 2019, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels" (conformal sets of the
labels that are likely enough).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST, _LARGEST = 1e-3, 1e3  # of a temperature


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T of the least cross-entropy of softmax(logits / T).

    Args:
        logits: [N, C].
        labels: int64 [N].

    Returns:
        T between 0.001 and 1,000; an end where the cross-entropy falls on beyond it.
    """
    logits = logits.double()
    right = logits.gather(1, labels[:, None])[:, 0]
    low, high = math.log(1 / _LARGEST), math.log(1 / _LEAST)
    # The cross-entropy is convex in 1/T: its slope, the mean of E[logit] - the right one, changes its sign once.
    for _ in range(60):
        middle = (low + high) / 2
        expected = (torch.softmax(math.exp(middle) * logits, dim=1) * logits).sum(1)
        if (expected - right).mean() > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def temperature_or_one(logits: Tensor, labels: Tensor) -> float:
    """The temperature of `fit_temperature`, or 1 where it went to an end: where all labels are right, nothing is fitted
    by making every answer look certain.
    """
    temperature = fit_temperature(logits, labels)
    return temperature if _LEAST * 1.01 < temperature < _LARGEST / 1.01 else 1.0


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The mean distance between confidence and accuracy, over bins of equal width of the largest probability.

    Args:
        probabilities: [N, C].
        labels: int64 [N].
    """
    confidence, found = probabilities.double().max(1)
    right = (found == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, confidence - right)
    return gap.abs().sum().item() / len(labels)


def keeping_threshold(known: Tensor, kept: float = 0.95) -> float:
    """The least rejection score that at least a fraction `kept` of known images, scores [N], does not exceed."""
    ordered = known.double().sort().values
    return ordered[max(0, math.ceil(kept * len(ordered)) - 1)].item()


def separating_threshold(known: Tensor, foreign: Tensor) -> float:
    """The threshold with the most balanced accuracy: known scores [N] at or below it, foreign ones [M] above it."""
    scores = torch.cat([known, foreign]).double()
    order = scores.argsort(stable=True)
    is_known = torch.cat([torch.ones(len(known)), torch.zeros(len(foreign))]).double()[order]
    kept = is_known.cumsum(0) / len(known)
    rejected = 1 - (1 - is_known).cumsum(0) / len(foreign)
    ordered = scores[order]
    last = torch.cat([ordered[1:] != ordered[:-1], torch.tensor([True])])  # equal scores are on one side
    at = int(torch.where(last, kept + rejected, -1.0).argmax())
    following = ordered[at + 1] if at + 1 < len(ordered) else ordered[at]
    return ((ordered[at] + following) / 2).item()


def auroc(known: Tensor, foreign: Tensor) -> float:
    """The probability that a foreign image, scores [M], has a higher rejection score than a known one, [N]."""
    ordered = known.double().sort().values
    below = torch.searchsorted(ordered, foreign.double(), right=False)
    upto = torch.searchsorted(ordered, foreign.double(), right=True)
    return ((below + upto).double().mean() / (2 * len(known))).item()


def false_known_rate(known: Tensor, foreign: Tensor, kept: float = 0.95) -> float:
    """The fraction of foreign images that pass as known where the fraction `kept` of known ones does (FPR95)."""
    return (foreign.double() <= keeping_threshold(known, kept)).double().mean().item()


def conformal_level(right: Tensor, coverage: float) -> float:
    """The least probability of a label in the conformal set.

    The set of all labels that have at least that holds the right one in at least the fraction `coverage` of the cases,
    for images that are drawn like these ("on average": not for each label by itself).

    Args:
        right: [N], the probabilities of the right labels.

    Returns:
        A probability; 0, so that sets hold every label, where N is too small to promise the coverage.
    """
    rank = math.ceil((len(right) + 1) * coverage)
    if rank > len(right):
        return 0.0
    return right.double().sort(descending=True).values[rank - 1].item()


def label_level(cosines: Tensor, labels: Tensor) -> float:
    """The cosine from which taking a label by itself gives the best F1 over all pairs of images and labels.

    Args:
        cosines: [N, C].
        labels: int64 [N].
    """
    flat = cosines.double().flatten()
    order = flat.argsort(descending=True)
    hits = torch.nn.functional.one_hot(labels, cosines.shape[1]).flatten()[order].double().cumsum(0)
    taken = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return flat[order][int((2 * hits / (taken + len(labels))).argmax())].item()
