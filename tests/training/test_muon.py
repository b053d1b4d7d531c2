"""Muon beside AdamW: who updates what, against both alone; schedules, stored state, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe, write_pairs

from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.errors import RecipeError
from cloob_cli.recipe import OptimizerSection
from cloob_cli.training import loop
from cloob_cli.training.events import CheckpointSaved
from cloob_cli.training.optimizer import build_optimizer, hidden_matrices, set_learning_rate

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
MUON = OptimizerSection(name="muon", learning_rate=1e-2, weight_decay=0.3, momentum=0.9)


def model_with(kind: str = "vit") -> CloobModel:
    vit = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2}
    resnet = {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}
    text = {"context_length": 8, "vocab_size": 600, "width": 16, "layers": 1, "heads": 2}
    vision = vit if kind == "vit" else resnet
    return build(ModelConfig.model_validate({"embed_dim": 16, "vision": vision, "text": text}), seed=0)


def set_gradients(model: CloobModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_has_the_matrices_of_blocks_and_nothing_else() -> None:
    model = model_with()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(parameter)] for parameter in hidden_matrices(model)}
    kinds = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    blocks = ("visual.transformer.resblocks.0", "visual.transformer.resblocks.1", "transformer.resblocks.0")
    assert matrices == {f"{block}.{kind}" for block in blocks for kind in kinds}
    optimizer = build_optimizer(model, MUON)
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]
    assert groups[0] == matrices
    assert sum(map(len, groups)) == len(names)
    assert set().union(*groups) == set(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]


def test_each_parameter_moves_as_its_own_optimizer_moves_it() -> None:
    together, muon, adamw = model_with(), model_with(), model_with()
    optimizers = [
        build_optimizer(together, MUON),
        torch.optim.Muon(
            hidden_matrices(muon), lr=1e-2, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        ),
        build_optimizer(adamw, OptimizerSection(learning_rate=1e-2, weight_decay=0.3)),
    ]
    for step in range(4):
        for model, optimizer in zip((together, muon, adamw), optimizers, strict=True):
            set_gradients(model, step)
            set_learning_rate(optimizer, 1e-2 / (step + 1))
            optimizer.step()
    matrices = {id(parameter) for parameter in hidden_matrices(together)}
    for own, by_muon, by_adamw in zip(together.parameters(), muon.parameters(), adamw.parameters(), strict=True):
        assert torch.equal(own, by_muon if id(own) in matrices else by_adamw)


def test_a_stored_state_goes_on_to_the_same_bits() -> None:
    straight, stopped = model_with(), model_with()
    one, other = build_optimizer(straight, MUON), build_optimizer(stopped, MUON)
    for step in range(6):
        if step == 3:
            again = build_optimizer(stopped, MUON)
            again.load_state_dict(other.state_dict())
            other = again
        for model, optimizer in ((straight, one), (stopped, other)):
            set_gradients(model, step)
            set_learning_rate(optimizer, 1e-2 / (step + 1))  # must reach the loaded groups too
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_to_the_same_bits_and_differs_from_adamw(tmp_path: Path, precision: str) -> None:
    data = write_pairs(tmp_path / "pairs")
    changes: dict = {"train__steps": 12, "train__checkpoint_every": 5, "train__precision": precision}
    recipe = tiny_recipe(data, optimizer__name="muon", **changes)
    list(loop.train_recipe(recipe, tmp_path / "whole", device="cpu"))
    events = loop.train_recipe(recipe, tmp_path / "cut", device="cpu")
    next(event for event in events if isinstance(event, CheckpointSaved))
    events.close()  # type: ignore[attr-defined]
    list(loop.train_recipe(recipe, tmp_path / "cut", device="cpu", resume=True))
    list(loop.train_recipe(tiny_recipe(data, **changes), tmp_path / "adamw", device="cpu"))
    one, two, plain = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut", "adamw"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(
        one["transformer.resblocks.0.mlp.c_fc.weight"], plain["transformer.resblocks.0.mlp.c_fc.weight"]
    )


def test_a_resnet_s_text_tower_is_enough_and_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with("resnet")
    assert len(build_optimizer(model, MUON).param_groups[0]["params"]) == 4
    with pytest.raises(RecipeError, match="no matrix"):
        build_optimizer(model.visual, MUON)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RecipeError, match=r"needs torch 2\.9"):
        build_optimizer(model, MUON)
