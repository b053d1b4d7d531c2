"""Linear classifiers on a model's embeddings: logistic regression on all of train, or on a few images of each class.

The strength of the regularization is chosen on images of train that the classifier is not fitted to.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from cloob_cli.core.accuracy import Predictions, predictions
from cloob_cli.core.bootstrap import mean_intervals
from cloob_cli.data.labeled_set import ClassificationSet
from cloob_cli.errors import DataError, Failure, MissingExtraError
from cloob_cli.evaluation.embeddings import Embedded, Embedder, OnImage
from cloob_cli.evaluation.results import Record
from cloob_cli.evaluation.zero_shot import record_of

SHOTS = (1, 2, 4, 8, 16)
DRAWS = 3  # of the few images of each class
_STRENGTHS = tuple(10.0**power for power in range(-2, 6))  # C of scikit-learn; embeddings have unit norm
_WITHOUT_CHOICE = 100.0  # where no image is left to choose it on
_HELD_OUT = 0.2  # of each class in train, to choose on
_MOST_TO_CHOOSE = 4  # images of each class, in few-shot
_ITERATIONS = 2000


@dataclass(frozen=True)
class Part:
    """Embeddings float32 [N, D] with their labels, int64 [N]."""

    features: np.ndarray
    labels: np.ndarray

    def rows(self, chosen: np.ndarray) -> Part:
        return Part(self.features[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Fitted:
    """Scores [N, C] of every class for the examples that were asked about, and how they were made."""

    scores: np.ndarray
    strength: float
    converged: bool


def linear_probe(
    embedder: Embedder,
    data: ClassificationSet,
    train: ClassificationSet,
    chosen: Sequence[int],
    model_name: str,
    resamples: int,
    on_image: OnImage | None = None,
) -> Record:
    """Score a logistic regression that is fitted to the embeddings of `train`.

    Raises:
        DataError: the splits have other classes, or no image can be read.
        MissingExtraError: scikit-learn is not installed.
    """
    examples, images, asked, failures = _parts(embedder, data, train, chosen, on_image)
    generator = np.random.default_rng(0)
    held_out = _held_out(examples.labels, generator)
    fitted = _fit(examples.rows(~held_out), examples.rows(held_out), examples, asked, len(data.classes))
    settings = {"train_images": len(examples.labels), "C": fitted.strength, "converged": fitted.converged}
    found = _answers(fitted.scores, asked.labels)
    record = record_of(found, data, images, "linear-probe", model_name, resamples, settings, prefix="lp_")
    record.failures = [*record.failures, *failures]
    return record


def few_shot(
    embedder: Embedder,
    data: ClassificationSet,
    train: ClassificationSet,
    chosen: Sequence[int],
    model_name: str,
    resamples: int,
    on_image: OnImage | None = None,
) -> Record:
    """Score logistic regressions that are fitted to 1, 2, 4, 8 and 16 images of each class, the mean of three draws.

    Further images of each class, as many but at most 4, choose the regularization. A class that has fewer gives all.

    Raises:
        DataError: the splits have other classes, or no image can be read.
        MissingExtraError: scikit-learn is not installed.
    """
    examples, images, asked, failures = _parts(embedder, data, train, chosen, on_image)
    metrics: dict[str, float] = {}
    bounds: dict[str, tuple[float, float]] = {}
    converged = True
    for shots in SHOTS:
        right = []
        for draw in range(DRAWS):
            fit, choose = _drawn(examples.labels, shots, np.random.default_rng([shots, draw]))
            part = examples.rows(fit)
            fitted = _fit(part, examples.rows(choose), part, asked, len(data.classes))
            converged &= fitted.converged
            right.append(_answers(fitted.scores, asked.labels).top(1).double())
        hits = torch.stack(right)
        name = f"{shots}_shot_acc1"
        metrics[name] = float(hits.mean())
        metrics[f"{name}_std"] = float(hits.mean(dim=1).std())
        if resamples:
            mean = hits.mean(dim=0, keepdim=True)
            [bounds[name]] = mean_intervals(mean, torch.ones_like(mean), resamples)
    counts = {"images": len(asked.labels), "classes": len(data.classes)}
    settings = {"train_images": len(examples.labels), "draws": DRAWS, "converged": converged}
    record = Record(data.name, model_name, "few-shot", metrics, bounds, counts, settings=settings)
    record.failures = [*images.failures, *failures]
    return record


def _parts(
    embedder: Embedder,
    data: ClassificationSet,
    train: ClassificationSet,
    chosen: Sequence[int],
    on_image: OnImage | None,
) -> tuple[Part, Embedded, Part, list[Failure]]:
    """The examples to learn from, the images to be asked about, these as a part, and what could not be learned from."""
    if train.classes != data.classes:
        raise DataError(f"{data.name}: the classes of its splits differ", "both need the same classes")
    _sklearn()  # it is missing before the work and not after it
    learned = embedder.images(train, range(len(train)), on_image)
    images = embedder.images(data, chosen, on_image)
    first = Part(learned.embeddings.numpy(), np.array([train.labels[index] for index in learned.indices]))
    second = Part(images.embeddings.numpy(), np.array([data.labels[index] for index in images.indices]))
    if len(np.unique(first.labels)) < 2:
        raise DataError(f"{data.name}: the images to learn from are of one class", "a classifier needs two")
    return first, images, second, learned.failures


def _held_out(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """bool [N]: a fifth of each class, rounded down, so that no class loses its only example."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out[rows[: int(len(rows) * _HELD_OUT)]] = True
    return held_out


def _drawn(labels: np.ndarray, shots: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of `shots` examples of each class to fit, and of as many others, at most 4, to choose on."""
    fit, choose = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        fit.append(rows[:shots])
        choose.append(rows[shots : shots + min(shots, _MOST_TO_CHOOSE)])
    return np.concatenate(fit), np.concatenate(choose)


def _fit(fit: Part, choose: Part, whole: Part, asked: Part, classes: int) -> Fitted:
    """Choose the strength by the accuracy on `choose` of what is fitted to `fit`; fit `whole` with it, answer `asked`.

    Of equally good strengths the strongest regularization is taken.
    """
    best, strength = -1.0, _WITHOUT_CHOICE
    for candidate in _STRENGTHS if len(choose.labels) else ():
        scores, _ = _scores(fit, choose.features, candidate, classes)
        accuracy = float((scores.argmax(axis=1) == choose.labels).mean())
        if accuracy > best:
            best, strength = accuracy, candidate
    scores, converged = _scores(whole, asked.features, strength, classes)
    return Fitted(scores, strength, converged)


def _scores(fit: Part, features: np.ndarray, strength: float, classes: int) -> tuple[np.ndarray, bool]:
    """(scores [N, classes], converged) of a regression fitted to `fit`; classes without an example come last."""
    sklearn = _sklearn()
    model = sklearn.linear_model.LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(fit.features, fit.labels)
    converged = not any(issubclass(one.category, sklearn.exceptions.ConvergenceWarning) for one in told)
    known = model.decision_function(features)
    if known.ndim == 1:  # of two classes scikit-learn gives one score
        known = np.stack([-known, known], axis=1)
    scores = np.full((len(features), classes), known.min() - 1, dtype=np.float64)
    scores[:, model.classes_] = known
    return scores, converged


def _answers(scores: np.ndarray, labels: np.ndarray) -> Predictions:
    return predictions(torch.from_numpy(scores), torch.from_numpy(labels))


def _sklearn() -> ModuleType:
    try:
        import sklearn
        import sklearn.exceptions
        import sklearn.linear_model
    except ImportError:
        raise MissingExtraError.of("eval", "scikit-learn") from None
    found: ModuleType = sklearn
    return found
