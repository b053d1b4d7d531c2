"""Positions of other image sizes against torch's own interpolation, and towers that use them."""

from __future__ import annotations

import pytest
import torch
from margins import EPS, close
from torch.nn import functional as F

from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.core.positional_embeddings import fitted_positions

VIT = {"kind": "vit", "image_size": 64, "patch_size": 8, "width": 32, "layers": 2, "heads": 2}
RESNET = {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 1, 1, 1], "heads": 4}


def model_with(vision: dict) -> CloobModel:
    text = {"context_length": 8, "vocab_size": 600, "width": 16, "layers": 1, "heads": 2}
    return build(ModelConfig.model_validate({"embed_dim": 16, "vision": vision, "text": text}), seed=0)


@pytest.mark.numeric
@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 6), (1, 1), (5, 7), (12, 12)])
def test_positions_are_interpolated_as_torch_does_and_so_is_their_gradient(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(65, 10, generator=generator, requires_grad=True)
    plain = embedding.detach().clone().requires_grad_()
    found = fitted_positions(embedding, height, width)
    grid = plain[1:].T.reshape(1, 10, 8, 8)
    resized = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)
    expected = torch.cat([plain[:1], resized[0].flatten(1).T])
    close(found, expected, "sixteen products in float32", atol=16 * EPS)
    target = torch.randn(expected.shape, generator=generator)
    (found * target).sum().backward()
    (expected * target).sum().backward()
    close(embedding.grad, plain.grad, "sums of products in float32", atol=64 * EPS)


def test_the_models_own_grid_is_left_alone() -> None:
    embedding = torch.randn(65, 10)
    assert fitted_positions(embedding, 8, 8) is embedding


@pytest.mark.numeric
def test_interpolation_that_began_in_inference_mode_can_be_trained_through() -> None:
    embedding = torch.randn(50, 3, requires_grad=True)
    with torch.inference_mode():
        fitted_positions(embedding, 3, 3)
    fitted_positions(embedding, 3, 3).sum().backward()
    # Each of the nine new cells is a weighted mean of the old ones.
    close(embedding.grad.sum(0), torch.full((3,), 10.0), "a sum of fifty in float32", rtol=16 * EPS)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("size", [32, 48])
def test_a_tower_takes_smaller_images(vision: dict, size: int) -> None:
    model = model_with(vision)
    pixels = torch.randn(3, 3, size, size)
    embeddings = model.encode_image(pixels)
    assert embeddings.shape == (3, 16)
    embeddings[:, 0].sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.visual.named_parameters())


def test_the_last_row_and_column_of_an_odd_map_count() -> None:
    """At 48 pixels a ResNet's last stage gets 3 x 3 positions: the outermost ones must reach the embedding."""
    model = model_with(RESNET).eval()
    features: list[torch.Tensor] = []

    def keep(_: object, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        features.append(output)

    for stage in (model.visual.layer3, model.visual.layer4):
        stage[-1].register_forward_hook(keep)
    model.encode_image(torch.randn(1, 3, 48, 48))[0, 0].backward()
    assert features[0].shape[-2:] == (3, 3)
    assert features[1].shape[-2:] == (2, 2)
    assert bool((features[0].grad.abs().sum(dim=(0, 1)) > 0).all())
