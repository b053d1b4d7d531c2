"""A teacher: its losses, a run that learns from it, and what such a run keeps."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import cloob_here, environment
from launched import TWO_PROCESSES
from margins import close, within
from PIL import Image
from tiny_model import RESNET, save_tiny_model
from tiny_run import equal_weights, run_weights, tiny_recipe, write_pairs, write_recipe

import cloob_cli
from cloob_cli.core.distillation import embeddings_loss, scores_loss
from cloob_cli.errors import RecipeError, UsageError
from cloob_cli.training import loop, teacher
from cloob_cli.training.metrics_file import read_rows

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the tiny recipe's width, 16."""
    return save_tiny_model(tmp_path_factory.mktemp("alike") / "teacher", RESNET)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("wide") / "teacher", embed_dim=24)


def taught(data: Path, model: Path, **changes: Any) -> Any:
    section = {name.removeprefix("teacher__"): changes.pop(name) for name in list(changes) if name[:9] == "teacher__"}
    return tiny_recipe(data, teacher={"model": str(model), **section}, **{"train__steps": 10, **changes})


def run(folder: Path, recipe: Any, **options: Any) -> list:
    return list(loop.train_recipe(recipe, folder, device="cpu", **options))


def test_the_losses_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    images, texts, wanted_images, wanted_texts = (
        (one := rng.normal(size=(5, width))) / np.linalg.norm(one, axis=1, keepdims=True) for width in (4, 4, 7, 7)
    )

    def softmax(scores: np.ndarray) -> np.ndarray:
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)

    divergences = []
    for own, wanted in (
        (images @ texts.T, wanted_images @ wanted_texts.T),
        (texts @ images.T, wanted_texts @ wanted_images.T),
    ):
        p, q = softmax(3.0 * wanted), softmax(2.0 * own)
        divergences.append((p * np.log(p / q)).sum(1).mean())
    tensors = [torch.from_numpy(one) for one in (images, texts, wanted_images, wanted_texts)]
    found = scores_loss(*tensors, torch.tensor(2.0), 3.0)
    close(float(found), np.mean(divergences), "float64", atol=1e-12)
    found = embeddings_loss(tensors[0], tensors[1], tensors[1], tensors[0])
    close(float(found), ((images - texts) ** 2).sum(1).mean(), "float64", atol=1e-12)


@pytest.mark.parametrize("kind", ["embeddings", "scores"])
def test_a_run_comes_to_resemble_its_teacher(data, alike, tmp_path, kind):
    """Against the same run without one: how far its embeddings, or its probabilities, are from the teacher's."""
    changes = {"train__steps": 60, "train__batch_size": 32}
    run(tmp_path / "alone", tiny_recipe(data, **changes))
    run(tmp_path / "taught", taught(data, alike, teacher__kind=kind, teacher__weight=10.0, **changes))
    master = cloob_cli.load(alike, device="cpu")
    images = [Image.open(path) for path in sorted(data.glob("*.png"))]
    captions = [path.read_text() for path in sorted(data.glob("*.txt"))]

    def embeddings(model: Any) -> list[torch.Tensor]:
        pixels = torch.stack([model.preprocess(image) for image in images])
        return [model.encode_image(pixels), model.encode_text(model.tokenize(captions))]

    def distance(folder: str) -> float:
        found = embeddings(cloob_cli.load(tmp_path / folder / "model", device="cpu"))
        if kind == "scores":
            return float(scores_loss(*found, *embeddings(master), 30.0, 30.0))
        return float(embeddings_loss(*found, *embeddings(master)))

    within(distance("taught") / distance("alone"), 0.5, "measured 0.1 and less; a teacher without influence gives 1")


def test_a_wider_teacher_needs_a_projection_and_a_resumed_run_needs_no_teacher(data, wide, tmp_path):
    with pytest.raises(RecipeError, match="the teacher's embeddings have 24 dimensions, the model's 16") as error:
        run(tmp_path / "refused", taught(data, wide))
    assert "teacher.projection = true" in (error.value.hint or "")
    assert not (tmp_path / "refused").exists()

    gone = shutil.copytree(wide, tmp_path / "gone")
    recipe = taught(data, gone, teacher__projection=True, train__checkpoint_every=4, train__ema=0.5)
    straight = run_weights(recipe, tmp_path / "straight")
    run_weights(recipe, tmp_path / "cut", last=4)
    shutil.rmtree(gone)
    assert equal_weights(run_weights(recipe, tmp_path / "cut", resume=True), straight)
    assert not any("projection.image" in name for name in straight)  # it is no part of the model


def test_another_teacher_under_a_run_is_refused(data, alike, wide, tmp_path):
    recipe = taught(data, alike, train__checkpoint_every=4, teacher__kind="scores")
    run_weights(recipe, tmp_path / "run", last=4)
    with pytest.raises(UsageError, match="is not the one that the run of step 4 has learned from"):
        run(tmp_path / "run", recipe, resume=True, find_model=lambda name: wide)


def test_what_a_teacher_gives_is_computed_once(data, alike, tmp_path, monkeypatch):
    recipe = taught(data, alike, train__checkpoint_every=4)
    run_weights(recipe, tmp_path / "run", last=4)
    monkeypatch.setattr(teacher.ImageWork, "blocks", None)
    monkeypatch.setattr(teacher.TextWork, "blocks", None)
    run(tmp_path / "run", recipe, resume=True)


@pytest.mark.parametrize("changes", [{"teacher__kind": "scores"}, {"teacher__projection": True}])
def test_slices_train_like_the_whole_batch(data, wide, tmp_path, changes):
    changes = changes | {"train__captions_per_image": 2, "objective__learn_inv_tau": True}
    whole = run_weights(taught(data, wide, **changes), tmp_path / "whole")
    sliced = run_weights(taught(data, wide, train__micro_batch_size=4, **changes), tmp_path / "sliced")
    for name in whole:
        close(sliced[name], whole[name], "ten steps of Adam on sums in another order", atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("section", [{"kind": "scores"}, {"projection": True}])
def test_two_processes_learn_like_one(data, wide, tmp_path, section):
    changes = {"train__steps": 8, "train__log_every": 1, "teacher": {"model": str(wide), "weight": 5.0, **section}}
    recipe = write_recipe(tmp_path / "recipe.toml", data, **changes)
    for out, command in (("one", [sys.executable, "-m", "cloob_cli"]), ("two", TWO_PROCESSES)):
        done = subprocess.run(
            [*command, "train", recipe, "--device", "cpu", "--out", tmp_path / out],
            env=environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    rows = [read_rows(tmp_path / out / "metrics.jsonl") for out in ("one", "two")]
    for name in ("loss", "gradient_norm"):
        values = [[row[name] for row in one] for one in rows]
        close(values[0], values[1], "rounding, enlarged by eight steps of Adam", rtol=2e-4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("teacher.model=cloob-xs-pictogram", "did you mean 'cloob-xs-pictograms'?"),
        ("teacher.kid=scores", "did you mean 'teacher.kind'?"),
        ('teacher={model="cloob-xs-pictograms", kind="scores", projection=true}', "projection goes with kind"),
        ("teacher.model=cloob-xs-pictograms", "the teacher's embeddings have 256 dimensions, the model's 16"),
    ],
)
def test_wrong_keys_are_one_line(tmp_path, data, override, said):
    write_recipe(tmp_path / "x.toml", data)
    done = cloob_here("train", "x.toml", "--dry-run", "--set", override, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
