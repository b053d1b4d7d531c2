"""Calibration of answers for one model and one set of labels, and its small file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from cloob_cli.atomic_files import replacing
from cloob_cli.core.calibration import (
    auroc,
    conformal_level,
    expected_calibration_error,
    keeping_threshold,
    label_level,
    separating_threshold,
    temperature_or_one,
)
from cloob_cli.errors import DataError, UsageError
from cloob_cli.inference.answers import Answers, Rejection, Rules
from cloob_cli.inference.scoring import AnyScorer
from cloob_cli.strict_model import StrictModel, parse

FORMAT = 1
_KEPT = 0.95
Fraction = Annotated[float, Field(ge=0, le=1)]


class Setup(StrictModel):
    """Everything that scores depend on: a calibration is good for these only."""

    weights_sha256: str
    labels: list[list[str]]
    templates: list[str]
    examples: str | None = None
    reference: str | None = None


class Calibration(StrictModel):
    """The fitted values, and how well they do on the images that they were fitted to.

    `ece_after` is measured on each half of the images with the temperature of the other half.
    """

    cloob_calibration: int
    made_by: str
    model: str
    setup: Setup
    temperature: Annotated[float, Field(gt=0)]
    rejection: Rejection
    threshold: float
    level: float
    coverage: Fraction | None = None
    conformal: Fraction | None = None
    images: int
    unknown_images: int
    accuracy: Fraction
    ece_before: Fraction
    ece_after: Fraction
    known_kept: Fraction
    unknown_rejected: Fraction | None = None
    auroc: Fraction | None = None
    mean_set_size: float | None = None


def fit(
    embeddings: Tensor,
    labels: Tensor,
    scorer: AnyScorer,
    answers: Answers,
    *,
    rejection: Rejection,
    coverage: float | None,
    setup: Setup,
    model: str,
    made_by: str,
) -> Calibration:
    """Fit temperature, threshold, level and conformal sets.

    Args:
        embeddings: unit-norm [N, D].
        labels: int64 [N]; -1 for images that belong to no label.
        answers: gives the rejection scores.
        coverage: the fraction of conformal sets that are to hold the right label; None fits none.
    """
    scores = scorer(embeddings)
    known = labels >= 0
    logits, right = scores.logits[known], labels[known]
    temperature = temperature_or_one(logits, right)
    probabilities = torch.softmax(logits / temperature, dim=1)
    # The score may be the softmax's own, which the temperature changes.
    rejections = answers.with_temperature(temperature).rejection(embeddings, scores)
    foreign = rejections[~known]
    threshold = (
        separating_threshold(rejections[known], foreign)
        if len(foreign)
        else keeping_threshold(rejections[known], _KEPT)
    )
    level = conformal_level(probabilities.gather(1, right[:, None])[:, 0], coverage) if coverage is not None else None
    return Calibration(
        cloob_calibration=FORMAT,
        made_by=made_by,
        model=model,
        setup=setup,
        temperature=temperature,
        rejection=rejection,
        threshold=threshold,
        level=label_level(scores.cosines[known], right),
        coverage=coverage,
        conformal=level,
        images=int(known.sum()),
        unknown_images=len(foreign),
        accuracy=(logits.argmax(1) == right).double().mean().item(),
        ece_before=expected_calibration_error(torch.softmax(logits, dim=1), right),
        ece_after=crossed_error(logits, right),
        known_kept=(rejections[known] <= threshold).double().mean().item(),
        unknown_rejected=(foreign > threshold).double().mean().item() if len(foreign) else None,
        auroc=auroc(rejections[known], foreign) if len(foreign) else None,
        mean_set_size=(probabilities >= level).double().sum(1).mean().item() if level is not None else None,
    )


def crossed_error(logits: Tensor, labels: Tensor) -> float:
    """The expected calibration error of [N, C] logits, each half with the temperature that the other half gives."""
    if len(labels) < 2:
        return expected_calibration_error(torch.softmax(logits, dim=1), labels)
    probabilities = torch.empty_like(logits)
    for half in (0, 1):
        temperature = temperature_or_one(logits[1 - half :: 2], labels[1 - half :: 2])
        probabilities[half::2] = torch.softmax(logits[half::2] / temperature, dim=1)
    return expected_calibration_error(probabilities, labels)


def write(path: Path, calibration: Calibration) -> None:
    """Write the file; it appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        DataError: not readable, or not a calibration file of this format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or "cloob_calibration" not in data:
        raise DataError(
            f"{path} is not a calibration file", "`cloob classify --calibrate DIR --calibration FILE` writes one"
        )
    if data["cloob_calibration"] != FORMAT:
        raise DataError(f"{path}: a calibration of format {data['cloob_calibration']}, this cloob knows {FORMAT}")
    return parse(Calibration, data, str(path), DataError)


def check(path: Path, calibration: Calibration, setup: Setup) -> None:
    """Refuse a calibration that was made for something else.

    Raises:
        UsageError: names the first thing that differs.
    """
    words = {"weights_sha256": "model", "labels": "labels", "templates": "templates", "examples": "examples"}
    for name, made in calibration.setup.model_dump().items():
        if made != getattr(setup, name):
            raise UsageError(
                f"{path} is for other {words.get(name, name)} than these", "calibrate again with what you classify with"
            )


def calibrated(calibration: Calibration, rules: Rules, own_threshold: bool) -> Rules:
    """`rules` with what was fitted; a threshold that the user gave stays."""
    return replace(
        rules,
        rejection=calibration.rejection,
        temperature=calibration.temperature,
        level=calibration.level,
        conformal=calibration.conformal,
        threshold=rules.threshold if own_threshold else calibration.threshold,
    )
