"""The convolutional stem of a vision transformer: its form, its place in a model, training, storing and encoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from margins import EPS, close
from tiny_run import tiny_recipe, write_pairs
from torch import nn

import cloob_cli
from cloob_cli.core.model import build
from cloob_cli.core.model_config import ModelConfig, VisionConfig
from cloob_cli.core.transformer import VisionTransformer
from cloob_cli.errors import ModelFolderError
from cloob_cli.inference.encoding import encode_images, prepare_for_inference
from cloob_cli.strict_model import parse
from cloob_cli.training import loop
from cloob_cli.training.events import CheckpointSaved

VISION = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2, "stem": "conv"}
TEXT = {"context_length": 8, "width": 16, "layers": 1, "heads": 2}


def config(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"embed_dim": 16, "vision": VISION | changes, "text": TEXT | {"vocab_size": 600}})


@pytest.mark.parametrize(("patch", "channels"), [(8, [8, 16, 32]), (16, [4, 8, 16, 32]), (2, [32])])
def test_the_stem_is_the_paper_s(patch: int, channels: list[int]) -> None:
    tower = build(config(patch_size=patch), seed=0).visual
    assert isinstance(tower, VisionTransformer)
    assert isinstance(tower.stem, nn.Sequential)
    convolutions, norms, activations = tower.stem[0::3], tower.stem[1::3], tower.stem[2::3]
    assert [layer.out_channels for layer in convolutions] == channels
    assert all((layer.kernel_size, layer.stride) == ((3, 3), (2, 2)) for layer in convolutions)
    assert [layer.num_features for layer in norms] == channels
    assert all(isinstance(layer, nn.ReLU) for layer in activations)
    assert tower.conv1.kernel_size == (1, 1)
    assert tower.conv1(tower.stem(torch.randn(2, 3, 32, 32))).shape == (2, 32, 32 // patch, 32 // patch)


def test_the_usual_stem_has_the_names_and_weights_it_had() -> None:
    plain = build(config(stem="patch"), seed=0)
    assert not [name for name in plain.state_dict() if "stem" in name]
    torch.manual_seed(0)
    first = nn.Conv2d(3, 32, 8, stride=8, bias=False).weight  # the first weight that is drawn
    assert torch.equal(plain.visual.conv1.weight, first)


@pytest.mark.parametrize("changes", [{"patch_size": 12, "image_size": 48}, {"patch_size": 1}])
def test_a_patch_that_is_no_power_of_two_is_refused(changes: dict) -> None:
    with pytest.raises(ModelFolderError, match="power of two"):
        parse(VisionConfig, VISION | changes, "config", ModelFolderError)


@pytest.mark.numeric
def test_folding_its_norms_keeps_the_embeddings() -> None:
    model = build(config(), seed=0)
    with torch.no_grad():
        for _ in range(3):
            model.train().encode_image(torch.randn(16, 3, 32, 32))  # statistics that are not the initial ones
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    expected = encode_images(model.eval(), pixels)
    folded = prepare_for_inference(model)
    assert not [module for module in folded.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    close(encode_images(folded, pixels), expected, "unit rows through a dozen layers in float32", atol=16 * EPS)


def test_a_model_with_it_trains_resumes_to_the_bit_and_opens(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    model = {"embed_dim": 16, "vision": VISION, "text": TEXT}
    changes: dict = {"train__image_sizes": [[0.0, 16], [0.5, 32]], "train__patch_dropout": 0.5}
    recipe = tiny_recipe(data, model=model, train__steps=8, train__checkpoint_every=3, **changes)
    list(loop.train_recipe(recipe, tmp_path / "whole", device="cpu"))
    events = loop.train_recipe(recipe, tmp_path / "cut", device="cpu")
    next(event for event in events if isinstance(event, CheckpointSaved))
    events.close()  # type: ignore[attr-defined]
    list(loop.train_recipe(recipe, tmp_path / "cut", device="cpu", resume=True))
    one, two = (cloob_cli.load(tmp_path / name / "model", device="cpu") for name in ("whole", "cut"))
    assert one.config.vision.stem == "conv"
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert "visual.stem.1.running_mean" in one.state_dict()
