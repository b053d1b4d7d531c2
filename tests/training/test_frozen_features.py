"""Features of frozen towers that are kept: the same training, what they are kept for, and what happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import environment
from finetune import finetuning
from launched import TWO_PROCESSES
from margins import EPS, close
from safetensors.torch import load_file
from tiny_model import RESNET, save_tiny_model
from tiny_run import equal_weights, write_pairs, write_recipe

from cloob_cli.checkpoint.folder import open_model, read_config, save_model
from cloob_cli.core.model import CloobModel
from cloob_cli.data.feature_cache import FeatureFile, FeatureTable
from cloob_cli.errors import NotExportableError
from cloob_cli.export import export_model
from cloob_cli.recipe import load_recipe
from cloob_cli.training import frozen_features, loop
from cloob_cli.training.events import Event, Notice, PairSkipped
from cloob_cli.training.metrics_file import read_rows

HEADS = {"adapter": {"layers": 2, "width": 24}}
CASES = [
    {"train__freeze": ["image"]},
    {"train__freeze": ["image.trunk"], "train__micro_batch_size": 5, "train__captions_per_image": 2},
    {"train__freeze": ["text"], "augment__shift": 2, "data__in_memory": False},
    {"train__freeze": ["image", "text"], "model__vision": HEADS, "model__text": HEADS, "train__batch_size": 10},
    {"train__freeze": ["image.trunk", "text.trunk"], "train__ema": 0.9, "objective__mask_equal_captions": True},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pairs, four with further captions, two unreadable."""
    folder = write_pairs(tmp_path_factory.mktemp("data") / "pairs")
    for number in (3, 8, 21, 40):
        (folder / f"{number:02}.txt").write_text("a shape\nanother shape\nred left\n", encoding="utf-8")
    (folder / "05.png").write_bytes(b"no image")
    (folder / "17.txt").write_text("\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("init") / "tiny", RESNET)


def run(folder: Path, recipe: Any, **options: Any) -> list[Event]:
    return list(loop.train_recipe(recipe, folder, device="cpu", **options))


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.numeric
@pytest.mark.parametrize("changes", [*CASES[1:4], *(pytest.param(one, marks=pytest.mark.slow) for one in CASES[::4])])
def test_the_loss_curve_is_that_of_a_run_without_them(data, init, tmp_path, changes):
    # Small steps, in proportion to the gradient: with the usual ones of Adam rounding doubles from step to step here.
    changes = {"optimizer__learning_rate": 2e-4, "optimizer__epsilon": 1e-2, **changes}
    changes = {"train__log_every": 1, "train__steps": 6, "train__batch_norm": "batch", **changes}
    events = {
        kept: run(tmp_path / str(kept), finetuning(data, init, train__feature_cache=kept, **changes))
        for kept in (True, False)
    }
    losses = {kept: [row["loss"] for row in read_rows(tmp_path / str(kept) / "metrics.jsonl")] for kept in events}
    assert len(losses[True]) == 6
    close(losses[True], losses[False], "float32: logits of 30, rounded some times in six steps", atol=16 * 30 * EPS)
    skipped = {kept: {e.name for e in found if isinstance(e, PairSkipped)} for kept, found in events.items()}
    assert skipped[True] == skipped[False]
    assert len(skipped[True]) == 2


def test_no_frozen_tower_runs_again_once_its_features_are_there(data, init, tmp_path, monkeypatch):
    calls: list[str] = []

    def counted(name):
        plain = getattr(CloobModel, name)

        def trunk(one, given):
            calls.extend([name] * one.training)  # not of the models that are opened to be written down
            return plain(one, given)

        return trunk

    for name in ("image_trunk", "text_trunk"):
        monkeypatch.setattr(CloobModel, name, counted(name))
    changes = {"train__freeze": ["image", "text"], "model__text": HEADS, "train__checkpoint_every": 4}
    recipe = finetuning(data, init, **changes)
    for event in (events := loop.train_recipe(recipe, tmp_path / "run", device="cpu")):
        if type(event).__name__ == "CheckpointSaved":
            break
    events.close()
    assert sorted(calls) == ["image_trunk", "text_trunk"]
    calls.clear()
    run(tmp_path / "run", recipe, resume=True)
    assert calls == []
    run(tmp_path / "straight", recipe)
    assert equal_weights(model(tmp_path / "run"), model(tmp_path / "straight"))


def test_images_that_change_are_not_kept_and_that_is_told(data, init, tmp_path):
    recipe = finetuning(data, init, train__freeze=["image"], augment__flip=True, train__steps=1)
    events = run(tmp_path / "run", recipe)
    assert any("its images change from step to step" in event.text for event in events if isinstance(event, Notice))
    assert not (tmp_path / "run" / "features").exists()


def test_features_of_other_weights_or_data_are_computed_anew_and_that_is_told(data, init, tmp_path):
    recipe = finetuning(data, init, train__freeze=["image"], train__steps=1)
    run(tmp_path / "run", recipe)
    first = np.load(tmp_path / "run" / "features" / "image" / "features.npy")
    other, changed = tmp_path / "other", open_model(init, "cpu")
    changed.visual.conv1.weight += 0.1
    save_model(other, changed, changed.tokenize, card_text="# other\n")
    for name in ("checkpoints", "start", "model"):
        for file in sorted((tmp_path / "run" / name).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (tmp_path / "run" / name).rmdir()
    events = run(tmp_path / "run", recipe, resume=True, find_model=lambda name: other)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert "the kept image features are of other weights: they are computed anew" in told
    second = np.load(tmp_path / "run" / "features" / "image" / "features.npy")
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


KILLED = """
import os, signal, sys
from cloob_cli.data import feature_cache
from cloob_cli.training import frozen_features
frozen_features.BLOCK = 8
plain, blocks = feature_cache.FeatureFile.add, []

def add(self, rows, missing):
    blocks.append(self.done)
    if len(blocks) == int(os.environ["DIES_IN"]):
        with (self.folder / "features.npy").open("ab") as stream:
            stream.write(b"torn")
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, rows, missing)

feature_cache.FeatureFile.add = add
sys.argv = ["cloob", *sys.argv[1:]]
from cloob_cli.main import run
run()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_while_features_are_written_ends_with_the_same_bits(data, init, tmp_path, monkeypatch):
    changes = {"train__freeze": ["image", "text.trunk"], "train__steps": 3}
    recipe = write_recipe(tmp_path / "recipe.toml", data, model={"init": str(init)}, tokenizer={}, **changes)
    recipe.write_text(recipe.read_text().replace("[tokenizer]\n", ""))
    (tmp_path / "killed.py").write_text(KILLED)

    def command(dies_in: int) -> subprocess.CompletedProcess[str]:
        options = ["--out", tmp_path / "cut", "--device", "cpu", "--resume"]
        return subprocess.run(
            [sys.executable, tmp_path / "killed.py", "train", recipe, *options],
            env=environment(DIES_IN=str(dies_in)), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    assert command(4).returncode == -signal.SIGKILL
    progress = json.loads((tmp_path / "cut" / "features" / "image" / "progress.json").read_text())
    assert progress["done"] == 24
    again = command(0)
    assert again.returncode == 3, again.stderr  # two pairs cannot be used
    assert "going on after 24 of 64" in again.stderr
    monkeypatch.setattr(frozen_features, "BLOCK", 8)
    run(tmp_path / "straight", load_recipe(recipe, init=lambda *_: read_config(init)))
    assert equal_weights(model(tmp_path / "cut"), model(tmp_path / "straight"))


@pytest.mark.slow
@pytest.mark.numeric
def test_two_processes_share_the_work_and_train_alike(data, init, tmp_path):
    changes = {"train__freeze": ["image", "text"], "model": {"init": str(init), "text": HEADS}, "train__steps": 6}
    recipe = write_recipe(tmp_path / "recipe.toml", data, tokenizer={}, train__log_every=1, **changes)
    recipe.write_text(recipe.read_text().replace("[tokenizer]\n", ""))
    for out, command in (("one", [sys.executable, "-m", "cloob_cli"]), ("two", TWO_PROCESSES)):
        done = subprocess.run(
            [*command, "train", recipe, "--device", "cpu", "--out", tmp_path / out],
            env=environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode in {0, 3}, done.stderr
    one, two = (np.load(tmp_path / out / "features" / "text" / "features.npy") for out in ("one", "two"))
    assert np.array_equal(one, two)
    losses = [[row["loss"] for row in read_rows(tmp_path / out / "metrics.jsonl")] for out in ("one", "two")]
    close(losses[0], losses[1], "rounding, enlarged by six steps of Adam", atol=1e-5)


def test_a_feature_file_keeps_what_is_whole_and_begins_anew_for_another_key(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    file = FeatureFile(tmp_path, {"weights": "a", "data": "b"}, 4, 3)
    file.add(rows[:3], {1: "torn"})
    file = FeatureFile(tmp_path, {"weights": "a", "data": "b"}, 4, 3)
    assert (file.done, file.missing, file.changed, file.complete) == (3, {1: "torn"}, [], False)
    file.add(rows[3:], {})
    assert np.array_equal(FeatureFile(tmp_path, {"weights": "a", "data": "b"}, 4, 3).rows(), rows)
    assert FeatureFile(tmp_path, {"weights": "a", "data": "c"}, 4, 3).changed == ["data"]
    file = FeatureFile(tmp_path, {"weights": "a", "data": "c"}, 4, 3)
    file.add(rows, {})
    (tmp_path / "features.npy").write_bytes((tmp_path / "features.npy").read_bytes()[:-1])
    file = FeatureFile(tmp_path, {"weights": "a", "data": "c"}, 4, 3)
    assert (file.done, file.changed) == (0, ["file"])


def test_a_table_finds_rows_by_number():
    table = FeatureTable([30, 10, 20], np.float32([[3, 3], [1, 1], [2, 2]]), {})
    assert table(np.array([[10, 30], [20, 20]])).tolist() == [[[1, 1], [3, 3]], [[2, 2], [2, 2]]]


def test_a_new_head_changes_nothing_and_a_trained_one_is_stored(data, init, tmp_path):
    recipe = finetuning(data, init, train__freeze=["image", "text"], model__vision=HEADS, model__text=HEADS)
    run(tmp_path / "run", recipe)
    before, start, after = (
        open_model(folder, "cpu") for folder in (init, tmp_path / "run" / "start", tmp_path / "run" / "model")
    )
    pixels, tokens = torch.randn(3, 3, 64, 64), before.tokenize(["red left", "a shape"])
    for name, given in (("encode_image", pixels), ("encode_text", tokens)):
        old, new, trained = (getattr(one, name)(given) for one in (before, start, after))
        assert torch.equal(old, new)
        assert not torch.equal(old, trained)
    changed = {n for n, t in model(tmp_path / "run").items() if not torch.equal(t, start.state_dict()[n])}
    assert {name.split(".")[0] for name in changed} == {"visual_adapter", "text_adapter"}
    with pytest.raises(NotExportableError, match="an adapter behind a tower"):
        export_model(tmp_path / "run" / "model", "open_clip", tmp_path / "out")
