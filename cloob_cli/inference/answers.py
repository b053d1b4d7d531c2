"""From an image's scores to its answer: a label, an ancestor of it in a tree, several labels, or unknown."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cloob_cli.core.calibration import keeping_threshold
from cloob_cli.core.rejection import cosine_score, empty_pattern_share, energy_score, softmax_score
from cloob_cli.inference.labels import Label
from cloob_cli.inference.result_rows import Choice, Classified
from cloob_cli.inference.scoring import Scores

Rejection = Literal["energy", "cosine", "softmax", "empty"]
REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)

# Where nobody gives a threshold: about 95 % of the known images of every held-out set, with 50 of its labels, stay
# below it with the bundled model (scripts/measure_answers.py, docs/answers.md). Other models' scores lie elsewhere.
DEFAULT_THRESHOLDS: dict[Rejection, float] = {"energy": 0.77, "cosine": 0.81, "softmax": 0.7, "empty": 0.5}
_SAMPLED = 2000  # stored images that a threshold is taken from
DEFAULT_SHARE = 0.5  # probability from which a label of several, or one in a tree, is taken
DEFAULT_LEVEL = 0.35  # cosine at which a label by itself is as likely as not, measured in the same way


@dataclass(frozen=True)
class Rules:
    """The way from scores to answers.

    Args:
        unknown: the label of images that are rejected; None rejects none.
        rejection: the score that decides.
        threshold: the largest score of a known image.
        least: the least probability of a label among several (`several`), or of one in a tree.
        several: every label with enough probability of its own, instead of one.
        temperature: divides what goes into the softmax.
        level: the cosine at which a label among several has the probability 1/2.
        conformal: the least probability of a label in the conformal set; None makes no sets.
    """

    unknown: str | None = None
    rejection: Rejection = "energy"
    threshold: float = 0.0
    least: float = DEFAULT_SHARE
    several: bool = False
    temperature: float = 1.0
    level: float = DEFAULT_LEVEL
    conformal: float | None = None


def further_names(rules: Rules, labels: Sequence[Label]) -> list[str]:
    """The names of what rows have beside their labels by these rules."""
    asked = {
        "rejection": rules.unknown is not None,
        "decided_by": rules.unknown is not None or rules.several or _has_tree(labels),
        "labels": rules.several,
        "set": rules.conformal is not None,
    }
    return [name for name, wanted in asked.items() if wanted]


class Answers:
    """Makes rows of batches.

    Args:
        labels: the C labels.
        rules: how answers are made.
        patterns: unit-norm [N, D], what the rejection scores take as known.
        beta: the inverse temperature of the energy, and of a label by itself.
    """

    def __init__(self, labels: Sequence[Label], rules: Rules, patterns: Tensor, beta: float) -> None:
        self._names = [label.name for label in labels]
        self._rules, self._patterns, self._beta = rules, patterns, beta
        self._further = further_names(rules, labels)
        self._tree = _has_tree(labels)
        self._above = [tuple(reversed(label.above)) for label in labels]  # the nearest first
        below: dict[str, list[int]] = {}
        for number, label in enumerate(labels):
            for name in label.path:
                below.setdefault(name, []).append(number)
        self._below = below

    def with_temperature(self, temperature: float) -> Answers:
        """The same with another temperature."""
        other = copy.copy(self)
        other._rules = replace(self._rules, temperature=temperature)
        return other

    def rows(self, paths: Sequence[str], embeddings: Tensor, scores: Scores, top_k: int) -> list[Classified]:
        """Answer for a batch of images, of at least one: their embeddings are unit-norm [B, D]."""
        rules = self._rules
        logits = scores.logits.float() / rules.temperature
        order = torch.sort(logits, dim=1, descending=True, stable=True).indices
        if rules.several:
            probabilities = torch.sigmoid(self._beta / rules.temperature * (scores.cosines - rules.level))
            rejection = 1 - probabilities.amax(1)
        else:
            probabilities = torch.softmax(logits, dim=1)
            rejection = self.rejection(embeddings, scores)
        shown = probabilities.tolist(), scores.cosines.tolist(), rejection.tolist(), order.tolist()
        return [self._row(path, p, c, r, o, top_k) for path, p, c, r, o in zip(paths, *shown, strict=True)]

    def rejection(self, embeddings: Tensor, scores: Scores) -> Tensor:
        """The rejection scores [B] of images, whose embeddings are unit-norm [B, D]."""
        match self._rules.rejection:
            case "softmax":
                return softmax_score(scores.logits.float() / self._rules.temperature)
            case "cosine":
                return cosine_score(embeddings, self._patterns)
            case "energy":
                return energy_score(embeddings, self._patterns, self._beta)
            case "empty":
                return empty_pattern_share(embeddings, self._patterns, self._beta)

    def _row(
        self, path: str, probability: list[float], cosine: list[float], rejection: float, order: list[int], top_k: int
    ) -> Classified:
        choices = [Choice(self._names[i], probability[i], cosine[i]) for i in order[:top_k]]
        rules = self._rules
        found = [Choice(self._names[i], probability[i], cosine[i]) for i in order if probability[i] >= rules.least]
        if rules.several:
            is_known, answer, decided_by = bool(found), choices[0], "threshold" if found else "best"
        else:
            answer, decided_by, is_known = self._decide(order[0], choices[0], probability)
            if rules.unknown is not None and rejection > rules.threshold:
                is_known, decided_by = False, "rejection"
        if rules.unknown is not None and not is_known:
            best = choices[0]
            answer = Choice(rules.unknown, best.probability, best.cosine)
            decided_by = "rejection" if rules.several else decided_by
        values: dict[str, Any] = {
            "rejection": rejection,
            "decided_by": decided_by,
            "labels": [choice.as_dict() for choice in found],
        }
        if rules.conformal is not None:
            # Never empty: the best label is in it.
            values["set"] = [self._names[i] for i in order if probability[i] >= rules.conformal] or [choices[0].label]
        return Classified(path, choices, {name: values[name] for name in self._further}, answer)

    def _decide(self, best: int, choice: Choice, probability: list[float]) -> tuple[Choice, str, bool]:
        """The answer for one label: (the best, or an ancestor of it; the reason; whether it is sure enough)."""
        if not self._tree:
            return choice, "best", True
        if choice.probability >= self._rules.least:
            return choice, "leaf", True
        for name in self._above[best]:
            total = sum(probability[i] for i in self._below[name])
            if total >= self._rules.least:
                return Choice(name, min(total, 1.0), choice.cosine), "ancestor", True
        return choice, "unsure", False


def stored_threshold(patterns: Tensor, first: int, rejection: Rejection, beta: float) -> float | None:
    """The rejection score that 95 % of stored images stay below, each compared with all other patterns.

    Args:
        patterns: unit-norm [N, D].
        first: the number of the first pattern that is an image; those before it are texts.

    Returns:
        None where it cannot be said: of other scores than "energy" and "cosine", and of a single pattern.
    """
    if rejection not in ("energy", "cosine") or len(patterns) < 2:
        return None
    step = max(1, (len(patterns) - first) // _SAMPLED)
    own = torch.arange(first, len(patterns), step)
    scores = []
    for part in own.split(64):
        if rejection == "energy":
            scores.append(energy_score(patterns[part], patterns, beta, own=part))
        else:
            scores.append(cosine_score(patterns[part], patterns, own=part))
    return keeping_threshold(torch.cat(scores))


def _has_tree(labels: Sequence[Label]) -> bool:
    return any(label.above for label in labels)
