"""Runs that start from a model: what is kept to the bit, what is frozen, what changes, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import cloob_here, environment
from finetune import finetuning
from foreign_folders import open_clip_config, save_open_clip, tiny_clip
from launched import TWO_PROCESSES
from margins import close
from safetensors.torch import load_file
from tiny_model import RESNET, VIT, save_tiny_model
from tiny_run import equal_weights, run_weights, write_pairs, write_recipe
from tokenizers import Tokenizer as Vocabulary
from tokenizers import models
from torch import Tensor

import cloob_cli
from cloob_cli.checkpoint.folder import open_model, read_config, save_model
from cloob_cli.core.model_config import CLIP_VOCAB_SIZE, TokenizerConfig
from cloob_cli.core.positional_embeddings import fitted_positions
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import DataError, RecipeError, UsageError
from cloob_cli.recipe import OptimizerSection
from cloob_cli.registry import hub
from cloob_cli.training import loop
from cloob_cli.training.checkpoints import load_progress
from cloob_cli.training.events import Event, Notice
from cloob_cli.training.initial_model import _check_captions
from cloob_cli.training.optimizer import build_optimizer, set_learning_rate

STEM = VIT | {"stem": "conv"}
"""A ViT with batch normalization."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("vit") / "tiny")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("resnet") / "tiny", RESNET)


def run(folder: Path, recipe: Any, **options: Any) -> list[Event]:
    return list(loop.train_recipe(recipe, folder, device="cpu", **options))


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("vision", "changes"),
    [
        (VIT, {}),
        (RESNET, {}),
        (STEM, {"train__ema": 0.9}),
        pytest.param(VIT, {"optimizer__name": "muon"}, marks=pytest.mark.slow),
        (RESNET, {"train__micro_batch_size": 4, "optimizer__layer_decay": 0.5}),
    ],
)
def test_a_learning_rate_of_zero_leaves_every_tensor_as_it_was(data, tmp_path, vision, changes):
    init = save_tiny_model(tmp_path / "init", vision, inv_tau=42.0)
    run(tmp_path / "run", finetuning(data, init, optimizer__learning_rate=0, train__steps=3, **changes))
    assert equal_weights(tensors(init), tensors(tmp_path / "run" / "model"))
    before, after = read_config(init), read_config(tmp_path / "run" / "model")
    assert (before.text, before.vision, before.tokenizer) == (after.text, after.vision, after.tokenizer)
    close(after.inv_tau, 42.0, "the exponential of a float32 logarithm", rtol=1e-6)
    model, made = open_model(init, "cpu"), open_model(tmp_path / "run" / "model", "cpu")
    assert torch.equal(model.tokenize(["red left"]), made.tokenize(["red left"]))


def test_running_means_move_where_the_recipe_asks_for_it(data, tmp_path, resnet):
    run(tmp_path / "run", finetuning(data, resnet, optimizer__learning_rate=0, train__batch_norm="batch"))
    moved = changed(tensors(resnet), tensors(tmp_path / "run" / "model"))
    assert moved == {n for n in tensors(resnet) if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}


FROZEN = [
    ("resnet", ["image"], ("visual.",)),
    ("resnet", ["image.layers:0-2", "text"], ("visual.layer1.", "visual.layer2.", "transformer.", "token_embedding.",
                                               "positional_embedding", "ln_final.", "text_projection")),
    ("vit", ["text"], ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")),
    ("vit", ["image.trunk"], tuple(f"visual.{name}" for name in (
        "conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post"))),
    ("vit", ["image.embedding", "image.layers:0", "text.projection"], (
        "visual.conv1", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre",
        "visual.transformer.resblocks.0.", "text_projection")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "names", "prefixes"), [*FROZEN[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in FROZEN[2:])]
)
def test_frozen_parts_stay_and_all_others_move(data, tmp_path, request, kind, names, prefixes):
    init = request.getfixturevalue(kind)
    changes = {"train__batch_norm": "batch", "train__ema": 0.9, "optimizer__learning_rate": 0.01}
    run(tmp_path / "run", finetuning(data, init, train__freeze=names, train__steps=50, **changes))
    before, after = tensors(init), tensors(tmp_path / "run" / "model")
    kept = before.keys() - changed(before, after)
    assert kept == {name for name in before if name.startswith(prefixes)} | {"logit_scale"}


@pytest.mark.slow
def test_frozen_parts_stay_on_two_processes(data, tmp_path, resnet):
    names = ["image.layers:0-3", "image.embedding", "text.layers:0"]
    changes = {"train__freeze": names, "train__steps": 50, "train__batch_norm": "batch"}
    recipe = write_recipe(tmp_path / "recipe.toml", data, model={"init": str(resnet)}, tokenizer={}, **changes)
    recipe.write_text(recipe.read_text().replace("[tokenizer]\n", ""))
    done = subprocess.run(
        [*TWO_PROCESSES, "train", recipe, "--device", "cpu", "--out", tmp_path / "run"],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = tensors(resnet), tensors(tmp_path / "run" / "model")
    prefixes = ("visual.layer1", "visual.layer2", "visual.layer3", "visual.conv", "visual.bn", "transformer.")
    kept = before.keys() - changed(before, after)
    assert kept == {name for name in before if name.startswith(prefixes)} | {"logit_scale"}


def test_a_frozen_tower_has_no_graph_and_no_state(data, tmp_path, vit, monkeypatch):
    """Counted: the tensors that autograd keeps for the backward pass while the image tower runs."""
    packed: list[Tensor] = []
    embed = cloob_cli.core.model.CloobModel.image_features

    def counted(model, pixels):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            return embed(model, pixels)

    monkeypatch.setattr(cloob_cli.core.model.CloobModel, "image_features", counted)
    run(tmp_path / "whole", finetuning(data, vit, train__steps=2, validation__every=1))
    assert packed
    packed.clear()
    run(tmp_path / "run", finetuning(data, vit, train__steps=2, train__freeze=["image"]))
    assert not packed
    stored = torch.load(tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer.pt", weights_only=True)
    sizes = sum(state["exp_avg"].numel() for state in stored["optimizer"]["state"].values())
    names = [name for name in tensors(vit) if not name.startswith("visual.") and name != "logit_scale"]
    assert sizes == sum(tensors(vit)[name].numel() for name in names)


@pytest.mark.numeric
def test_slices_with_a_frozen_tower_train_like_the_whole_batch(data, tmp_path, vit):
    whole, sliced = (
        run_weights(finetuning(data, vit, train__freeze=["image"], **more), tmp_path / str(len(more)))
        for more in ({}, {"train__micro_batch_size": 4})
    )
    for name in whole:
        close(sliced[name], whole[name], "ten steps of Adam on sums in another order", atol=2e-4)


def test_a_resumed_run_needs_nothing_of_the_model_that_it_started_from(data, tmp_path, resnet):
    init = shutil.copytree(resnet, tmp_path / "init")
    changes = {
        "train__freeze": ["image.layers:0"],
        "optimizer__layer_decay": 0.7,
        "optimizer__text_learning_rate": 1e-2,
    }
    recipe = finetuning(data, init, train__checkpoint_every=4, **changes)
    straight = run_weights(recipe, tmp_path / "straight")
    run_weights(recipe, tmp_path / "cut", last=4)
    shutil.rmtree(init)
    assert equal_weights(run_weights(recipe, tmp_path / "cut", resume=True), straight)


def test_another_start_under_a_run_is_refused(data, tmp_path, vit):
    recipe = finetuning(data, vit, train__checkpoint_every=4)
    run_weights(recipe, tmp_path / "run", last=4)
    progress = load_progress(tmp_path / "run" / "checkpoints" / "step-00000004")
    assert progress.start is not None
    shutil.rmtree(tmp_path / "run" / "start")
    other, model = tmp_path / "other", open_model(vit, "cpu")
    model.text_projection += 1
    save_model(other, model, model.tokenize, card_text="# other\n")
    with pytest.raises(UsageError, match="is not what it was when the run of step 4 started"):
        run(tmp_path / "run", recipe, resume=True, find_model=lambda name: other)


def test_a_changed_image_size_and_context_change_positions_alone(data, tmp_path, vit):
    recipe = finetuning(data, vit, optimizer__learning_rate=0, model__vision={"image_size": 48},
                        model__text={"context_length": 8})  # fmt: skip
    run(tmp_path / "run", recipe)
    before, after = tensors(vit), tensors(tmp_path / "run" / "start")
    names = {"visual.positional_embedding", "positional_embedding"}
    assert {name for name in before if before[name].shape != after[name].shape} == names
    assert equal_weights(*({n: t for n, t in one.items() if n not in names} for one in (before, after)))
    assert torch.equal(
        after["visual.positional_embedding"], fitted_positions(before["visual.positional_embedding"], 3, 3)
    )
    assert torch.equal(after["positional_embedding"], before["positional_embedding"][:8])
    assert equal_weights(after, tensors(tmp_path / "run" / "model"))


def test_what_starts_anew_is_said(data, tmp_path, vit):
    recipe = finetuning(data, vit, tokenizer__kind="bpe", tokenizer__vocab_size=530, model__text={"context_length": 14},
                        model__embed_dim=24, train__steps=1)  # fmt: skip
    said = [event.text for event in run(tmp_path / "run", recipe) if isinstance(event, Notice)]
    assert sorted(said) == [
        "positions 12 to 13 of a text are new and start anew",
        "the embedding has 24 dimensions instead of 16: text_projection starts anew",
        "the embedding has 24 dimensions instead of 16: visual.proj starts anew",
        "the tokenizer is another: its 530 token embeddings start anew",
    ]
    before, start = tensors(vit), tensors(tmp_path / "run" / "start")
    assert start["token_embedding.weight"].shape == (530, 32)
    assert torch.equal(start["positional_embedding"][:12], before["positional_embedding"])
    assert torch.equal(start["visual.conv1.weight"], before["visual.conv1.weight"])


def test_what_the_recipe_leaves_out_comes_from_the_model(data, tmp_path):
    mean = (0.1, 0.2, 0.3)
    init = save_tiny_model(tmp_path / "init", preprocess={"mean": mean}, templates=["an icon of {c}"], inv_tau=17.0,
                           scale_hopfield=5.0)  # fmt: skip
    recipe = finetuning(data, init, model__preprocess={"resize": "squash"}, objective__scale_hopfield=6.0)
    assert (recipe.model.preprocess.mean, recipe.model.preprocess.resize) == (mean, "squash")
    assert recipe.model.templates == ["an icon of {c}"]
    assert (recipe.objective.inv_tau, recipe.objective.scale_hopfield) == (17.0, 6.0)


def test_rates_by_tower_and_layer(vit):
    model = open_model(vit, "cpu", torch.float32).requires_grad_()
    section = OptimizerSection(learning_rate=1.0, image_learning_rate=0.1, layer_decay=0.5, weight_decay=0.0)
    optimizer = build_optimizer(model, section)
    set_learning_rate(optimizer, lambda peak: 1.0 if peak is None else peak)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: rate_of[id(parameter)] for name, parameter in model.named_parameters()}
    expected = {
        "visual.conv1.weight": 0.1 / 4, "visual.positional_embedding": 0.1 / 4,
        "visual.transformer.resblocks.0.mlp.c_fc.bias": 0.1 / 2,
        "visual.transformer.resblocks.1.attn.in_proj_bias": 0.1,
        "visual.ln_post.weight": 0.1, "visual.proj": 0.1, "token_embedding.weight": 0.5,
        "transformer.resblocks.0.ln_1.weight": 1.0, "text_projection": 1.0, "logit_scale": 1.0,
    }  # fmt: skip
    assert {name: rates[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__freeze": ["image", "text"]}, "train.freeze leaves nothing to train"),
        ({"train__freeze": ["image.layers:1-7"]}, "the image tower has 2 blocks, the last is number 1"),
        ({"model__vision": {"width": 64}}, "model.vision.width is 64, and 32 in the model to start from"),
        ({"model__text": {"layers": 3}}, "model.text.layers is 3, and 1 in the model to start from"),
    ],
)
def test_what_cannot_be_is_said_before_a_folder_is_made(data, tmp_path, vit, changes, said):
    with pytest.raises(RecipeError, match=said):
        run(tmp_path / "run", finetuning(data, vit, **changes))
    assert not (tmp_path / "run").exists()


def test_captions_that_the_vocabulary_does_not_know(tmp_path):
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in "derlbu ")]
    vocabulary = Vocabulary(models.Unigram(pieces, unk_id=3))
    tokenizer = Tokenizer(vocabulary.to_str().encode(), TokenizerConfig(kind="roberta"), 4)

    class Captions:
        def __init__(self, captions: list[str]) -> None:
            self.captions = captions

        def some_captions(self, most: int) -> list[str]:
            return self.captions

    with pytest.raises(DataError, match="does not know the script or the words of 67% of the captions"):
        _check_captions(tokenizer, Captions(["red", "赤", "青い海"]))
    assert _check_captions(tokenizer, Captions(["red", "blue"])) == []
    [notice] = _check_captions(tokenizer, Captions(["red", "red blue"]))
    assert notice == "50% of the captions are longer than 4 tokens and are cut"


def test_the_command_starts_from_a_run_and_goes_on_without_it(data, tmp_path):
    """By a path in the recipe, relative to it; the stored recipe tells nobody where it lay."""
    save_tiny_model(tmp_path / "first" / "model")
    text = f"""name = "second"\n[model]\ninit = "./first"\n[data]\ntrain = "{data}"\nworkers = 0\n
[train]\nsteps = 4\nbatch_size = 16\nprecision = "fp32"\nfreeze = ["image"]\n"""
    (tmp_path / "second.toml").write_text(text)
    place = tmp_path / "elsewhere"
    place.mkdir()
    dry = cloob_here("train", tmp_path / "second.toml", "--dry-run", "--json", cwd=place)
    assert dry.returncode == 0, dry.stderr
    found = json.loads(dry.stdout)
    assert 0 < found["trained parameters"] < found["parameters"]
    assert found["recipe"]["model"]["vision"]["width"] == 32
    done = cloob_here("train", tmp_path / "second.toml", "--device", "cpu", cwd=place)
    assert done.returncode == 0, done.stderr
    config = read_config(place / "runs" / "second" / "model")
    assert config.recipe is not None
    assert config.recipe["model"]["init"] == "first"
    assert config.source == {"init": "first"}
    shutil.rmtree(tmp_path / "first")
    (place / "runs" / "second" / "result.json").unlink()
    again = cloob_here("train", tmp_path / "second.toml", "--device", "cpu", "--resume", cwd=place)
    assert again.returncode == 0, again.stderr


def test_a_run_that_goes_on_does_not_ask_the_hub_for_its_start(data, tmp_path, monkeypatch):
    made, asked = save_tiny_model(tmp_path / "made"), []
    monkeypatch.setattr(hub, "model_folder", lambda name: asked.append(name) or made)
    text = f"""name = "x"\n[model]\ninit = "hf://org/made"\n[data]\ntrain = "{data}"\nworkers = 0\n
[train]\nsteps = 4\nbatch_size = 16\nprecision = "fp32"\nfreeze = ["image"]\n"""
    (tmp_path / "x.toml").write_text(text)
    command = ("train", "x.toml", "--device", "cpu", "--out", "run")
    assert cloob_here(*command, cwd=tmp_path).returncode == 0
    assert set(asked) == {"hf://org/made"}
    asked.clear()
    (tmp_path / "run" / "result.json").unlink()
    again = cloob_here(*command, "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert asked == []
    shutil.rmtree(tmp_path / "run")  # nothing is kept: a resumption is a new run
    assert cloob_here(*command, "--resume", cwd=tmp_path).returncode == 0
    assert set(asked) == {"hf://org/made"}


def test_a_folder_of_another_program_is_a_start_too(data, tmp_path):
    other = save_open_clip(tmp_path / "other", tiny_clip(), open_clip_config(quick_gelu=True))
    text = 'name = "x"\n[model]\ninit = "./other"\n[train]\nsteps = 2\nbatch_size = 16\nprecision = "fp32"\n'
    (tmp_path / "x.toml").write_text(f'{text}[optimizer]\nlearning_rate = 0\n[data]\ntrain = "{data}"\nworkers = 0\n')
    done = cloob_here("train", "x.toml", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made, opened = open_model(tmp_path / "runs" / "x" / "model", "cpu"), open_model(other, "cpu")
    assert equal_weights(made.state_dict(), opened.state_dict())
    assert made.config.preprocess == opened.config.preprocess


@pytest.mark.parametrize("kind", ["bpe", "clip", "init"])
def test_a_size_of_the_vocabulary_that_contradicts_is_an_error(data, tmp_path, kind):
    """Beside a new tokenizer, and beside that of the model to start from."""
    init = save_tiny_model(tmp_path / "init")
    right = {"bpe": 530, "clip": CLIP_VOCAB_SIZE, "init": read_config(init).text.vocab_size}[kind]
    text = f'name = "x"\n[model]\ninit = "{init}"\n[data]\ntrain = "{data}"\n[train]\nsteps = 1\nbatch_size = 4\n'
    (tmp_path / "x.toml").write_text(f'{text}[tokenizer]\nkind = "{kind}"\n' + "vocab_size = 530\n" * (kind == "bpe"))

    def tried(size: int) -> subprocess.CompletedProcess[str]:
        return cloob_here("train", "x.toml", "--dry-run", "--set", f"model.text.vocab_size={size}", cwd=tmp_path)

    wrong = tried(right + 1)
    assert wrong.returncode == 2
    assert (
        f"is {right + 1}, the {'model to start from' if kind == 'init' else 'tokenizer'} has {right} entries"
        in " ".join(wrong.stderr.split())
    )
    assert "leave the key out" in wrong.stderr
    equal = tried(right)
    assert equal.returncode == 0, equal.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.init=cloob-xs-pictogram", "did you mean 'cloob-xs-pictograms'?"),
        ("model.init=./nothing", "there is no model folder"),
        ('train.freeze=["image.layer"]', "did you mean 'image.layers'?"),
        ('train.freeze=["vision"]', "is no part of a model"),
        ('train.freeze=["image.layers:3-1"]', "has its first block behind its last"),
        ("model.architecture=RN50", "give model.init or model.architecture"),
        ("model.vision.widht=3", "did you mean 'model.vision.width'?"),
        ("optimizer.layer_decay=1.5", "'optimizer.layer_decay'"),
    ],
)
def test_wrong_keys_are_one_line(tmp_path, data, override, said):
    text = f'name = "x"\n[model]\ninit = "cloob-xs-pictograms"\n[data]\ntrain = "{data}"\n[train]\nsteps = 1\n'
    (tmp_path / "x.toml").write_text(text)
    done = cloob_here("train", "x.toml", "--dry-run", "--set", override, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
