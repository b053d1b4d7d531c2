"""Zero-shot classification of a labeled data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cloob_cli.core.accuracy import Predictions, class_weights, predictions, recall_by_class
from cloob_cli.core.bootstrap import mean_intervals
from cloob_cli.data.labeled_set import ClassificationSet
from cloob_cli.errors import DataError
from cloob_cli.evaluation.embeddings import Embedded, Embedder, OnImage
from cloob_cli.evaluation.results import ClassScore, Confusion, Record, Task

_ROWS = 4096  # rows of the scores that are held at a time
_EXAMPLES = 8  # names of images that a confusion keeps
_FEWEST_FOR_TOP_5 = 5  # classes: below that CLIP_benchmark gives no acc5


def zero_shot(
    embedder: Embedder,
    data: ClassificationSet,
    chosen: Sequence[int],
    model_name: str,
    resamples: int,
    on_image: OnImage | None = None,
) -> Record:
    """Score a model by the classes' names in the data set's templates.

    Args:
        chosen: numbers of the images that count.
        resamples: of the bootstrap; 0 gives no intervals.

    Raises:
        DataError: no image can be read, or there is no class or a class without a name.
    """
    if not data.classes or not all(any(text.strip() for text in texts) for texts in data.texts):
        raise DataError(f"{data.name} has no class names, or an empty one", "give them with --labels")
    images = embedder.images(data, chosen, on_image)
    classes = embedder.classes(data.texts, data.templates)
    found = classify(images.embeddings, classes, torch.tensor([data.labels[index] for index in images.indices]))
    settings = {"templates": list(data.templates)}
    return record_of(found, data, images, "zero-shot", model_name, resamples, settings)


def classify(embeddings: Tensor, classes: Tensor, labels: Tensor) -> Predictions:
    """The answers for embeddings [N, D] by class embeddings [C, D], without holding all N x C scores."""
    parts = [predictions(embeddings[rows] @ classes.T, labels[rows]) for rows in torch.arange(len(labels)).split(_ROWS)]
    return Predictions(
        torch.cat([part.places for part in parts]),
        torch.cat([part.predicted for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.margins for part in parts]),
    )


def record_of(
    found: Predictions,
    data: ClassificationSet,
    images: Embedded,
    task: Task,
    model_name: str,
    resamples: int,
    settings: dict[str, Any],
    prefix: str = "",
) -> Record:
    """A record of a classifier's answers; `prefix` stands before the names of its metrics."""
    top1, top5 = found.top(1).double(), found.top(5).double()
    ones = torch.ones_like(top1)
    measures = {
        "acc1": (top1, ones),
        "acc5": (top5, ones),
        "mean_per_class_recall": (top1, class_weights(found.labels)),
    }
    values = {prefix + name: float((right * share).sum() / share.sum()) for name, (right, share) in measures.items()}
    if len(data.classes) < _FEWEST_FOR_TOP_5:
        del measures["acc5"]
        values[f"{prefix}acc5"] = math.nan
    bounds: dict[str, tuple[float, float]] = {}
    if resamples:
        rights, shares = (torch.stack(column) for column in zip(*measures.values(), strict=True))
        ends = mean_intervals(rights, shares, resamples)
        bounds = {prefix + name: end for name, end in zip(measures, ends, strict=True)}
    return Record(
        data.name,
        model_name,
        task,
        values,
        bounds,
        {"images": len(top1), "classes": len(data.classes)},
        settings=settings,
        classes=_class_scores(found, data.classes),
        confusions=_confusions(found, data, images.indices),
        failures=images.failures,
    )


def _class_scores(found: Predictions, classes: Sequence[str]) -> list[ClassScore]:
    present, recall = recall_by_class(found.top(1), found.labels)
    counts = torch.bincount(found.labels)
    return [
        ClassScore(classes[number], int(counts[number]), value)
        for number, value in zip(present.tolist(), recall.tolist(), strict=True)
    ]


def _confusions(found: Predictions, data: ClassificationSet, indices: Sequence[int]) -> list[Confusion]:
    confusions = []
    for label, predicted, count in found.confusions():
        names = [data.image_name(indices[row]) for row in found.confused(label, predicted)[:_EXAMPLES]]
        confusions.append(Confusion(data.classes[label], data.classes[predicted], count, names))
    return confusions
