"""Linear probe and few-shot: classifiers on embeddings, against scikit-learn by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from margins import close
from tiny_model import save_tiny_model
from tiny_run import write_class_folders

from cloob_cli import load
from cloob_cli.core.model import CloobModel
from cloob_cli.data.classification import open_classification_set
from cloob_cli.errors import DataError, MissingExtraError
from cloob_cli.evaluation import linear_probe
from cloob_cli.evaluation.embeddings import Embedder
from cloob_cli.evaluation.evaluate import Asked, evaluate, open_data, open_train

linear_model = pytest.importorskip("sklearn.linear_model")


def clouds(classes: int, each: int, seed: int, width: int = 12) -> linear_probe.Part:
    """Unit vectors around one center for each class."""
    centers = np.random.default_rng(0).normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), each)
    points = centers[labels] + 1.5 * np.random.default_rng(seed).normal(size=(len(labels), width))
    return linear_probe.Part((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels)


@pytest.mark.numeric
def test_the_scores_are_those_of_scikit_learn() -> None:
    fit, choose, asked = clouds(5, 30, 1), clouds(5, 10, 2), clouds(5, 40, 3)
    fitted = linear_probe._fit(fit, choose, fit, asked, 7)
    by_strength = {
        strength: linear_model.LogisticRegression(C=strength, max_iter=2000).fit(fit.features, fit.labels)
        for strength in linear_probe._STRENGTHS
    }
    scores = {strength: model.score(choose.features, choose.labels) for strength, model in by_strength.items()}
    assert fitted.strength == max(scores, key=lambda strength: scores[strength])
    best = by_strength[fitted.strength]
    found = linear_probe._answers(fitted.scores, asked.labels)
    assert found.predicted.tolist() == best.predict(asked.features).tolist()
    close(found.top(1).double().mean(), best.score(asked.features, asked.labels), "counts of examples", atol=1e-12)
    assert fitted.converged


def test_two_classes_and_classes_without_an_example() -> None:
    fit = clouds(2, 30, 1)
    scores, _ = linear_probe._scores(fit, fit.features, 10.0, 4)
    expected = linear_model.LogisticRegression(C=10.0).fit(fit.features, fit.labels).predict(fit.features)
    assert scores.argmax(axis=1).tolist() == expected.tolist()
    assert (scores[:, 2:] < scores[:, :2].min()).all()


def test_no_class_loses_its_only_example() -> None:
    labels = np.array([0] * 20 + [1] * 4 + [2])
    held_out = linear_probe._held_out(labels, np.random.default_rng(0))
    assert [int(held_out[labels == label].sum()) for label in range(3)] == [4, 0, 0]


def test_draws_are_of_each_class_and_do_not_overlap() -> None:
    labels = np.repeat(np.arange(4), [20, 20, 6, 1])
    fit, choose = linear_probe._drawn(labels, 8, np.random.default_rng(0))
    assert np.bincount(labels[fit]).tolist() == [8, 8, 6, 1]
    assert np.bincount(labels[choose]).tolist() == [4, 4]
    assert not set(fit) & set(choose)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model")
    for split in ("train", "test"):
        write_class_folders(tmp_path / "colors" / split)
    return tmp_path


def opened(place: Path) -> tuple[CloobModel, Embedder]:
    model = load(str(place / "model"), device="cpu")
    return model, Embedder(model, "tiny")


def test_both_tasks_on_a_data_set_with_splits(place: Path) -> None:
    _, embedder = opened(place)
    asked = Asked(task="linear-probe", resamples=100)
    data, train = open_data(place / "colors", asked), open_train(place / "colors", asked)
    record = evaluate(embedder, "tiny", data, asked, train=train)
    assert list(record.metrics) == ["lp_acc1", "lp_acc5", "lp_mean_per_class_recall"]
    assert record.metrics["lp_acc1"] > 0.9  # the test images are the training images; chance is 1/8
    assert record.settings["train_images"] == 32

    asked = Asked(task="few-shot", resamples=100)
    record = evaluate(embedder, "tiny", data, asked, train=train)
    assert [name for name in record.metrics if not name.endswith("std")] == [f"{k}_shot_acc1" for k in (1, 2, 4, 8, 16)]
    assert record.metrics["1_shot_acc1"] < record.metrics["4_shot_acc1"]
    assert record.metrics["4_shot_acc1"] == record.metrics["16_shot_acc1"]  # a class has four images
    assert record == evaluate(embedder, "tiny", data, asked, train=train)


def test_what_cannot_be_learned_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, embedder = opened(place)
    asked = Asked(task="linear-probe")
    with pytest.raises(DataError, match="both learned from and scored"):
        open_train(place / "colors", Asked(task="few-shot", split="train"))
    data = open_classification_set(place / "colors")
    write_class_folders(place / "other" / "train")
    (place / "other" / "train" / "red").rename(place / "other" / "train" / "rot")
    with pytest.raises(DataError, match="classes of its splits differ"):
        evaluate(embedder, "tiny", data, asked, train=open_classification_set(place / "other", "train"))

    def missing() -> None:
        raise MissingExtraError.of("eval", "scikit-learn")

    monkeypatch.setattr(linear_probe, "_sklearn", missing)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        evaluate(embedder, "tiny", data, asked, train=open_train(place / "colors", asked))


def test_a_regression_that_does_not_converge_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "_ITERATIONS", 1)
    fit = clouds(5, 30, 1)
    assert not linear_probe._fit(fit, fit, fit, fit, 5).converged
    assert torch.isfinite(torch.from_numpy(linear_probe._scores(fit, fit.features, 1.0, 5)[0])).all()
