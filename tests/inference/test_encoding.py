"""Models made ready for inference give what they gave before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from margins import close
from PIL import Image
from tiny_model import RESNET, VIT, save_images, save_tiny_model
from torch import nn

from cloob_cli import load
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.inference.encoding import (
    encode_images,
    encode_in_passes,
    encode_texts,
    pass_size,
    prepare_for_inference,
)
from cloob_cli.inference.image_batches import image_batches

UNIT_ROWS = "elements below 1 through a dozen layers in float32: 16 EPS"


@pytest.mark.numeric
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_equals_the_plain_model(tmp_path: Path, vision: dict[str, object]) -> None:
    folder = save_tiny_model(tmp_path / "model", vision)
    plain, prepared = load(str(folder), "cpu"), load(str(folder), "cpu")
    generator = torch.Generator().manual_seed(1)
    for one, other in zip(plain.visual.modules(), prepared.visual.modules(), strict=True):
        if isinstance(one, nn.BatchNorm2d):  # fresh statistics would make the folding trivial
            for name in ("weight", "bias", "running_mean", "running_var"):
                values = torch.rand(one.num_features, generator=generator) + 0.5
                for norm in (one, other):
                    getattr(norm, name).copy_(values)
    prepare_for_inference(prepared)
    assert not [module for module in prepared.modules() if isinstance(module, nn.BatchNorm2d)]

    paths = save_images(tmp_path / "images", 3)
    size = plain.config.vision.image_size
    [batch] = image_batches(paths, Preprocess(size, plain.config.preprocess), batch_size=8)
    ours = encode_images(prepared, batch.pixels)
    alone = torch.cat([plain.encode_image(plain.preprocess(Image.open(path))[None]) for path in paths])
    close(ours, alone, UNIT_ROWS, atol=2e-6)
    assert (ours.dtype, ours.device.type, ours.requires_grad) == (torch.float32, "cpu", False)

    texts = ["a red bicycle", "the sea"]
    alone = torch.cat([plain.encode_text(plain.tokenize([text])) for text in texts])
    close(encode_texts(prepared, texts), alone, UNIT_ROWS, atol=2e-6)


@pytest.mark.parametrize("size", [16, 5])
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_image_s_embedding_is_the_same_to_the_bit_whatever_stands_beside_it(
    tmp_path: Path, vision: dict[str, object], size: int
) -> None:
    model = prepare_for_inference(load(str(save_tiny_model(tmp_path / "model", vision)), "cpu"))
    side = model.config.vision.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (37, side, side, 3), generator=generator, dtype=torch.uint8)
    together = encode_in_passes(model, pixels, size)
    order = torch.randperm(len(pixels), generator=generator)
    assert torch.equal(encode_in_passes(model, pixels[order], size), together[order])
    for count in (1, 2, 3, 16, 20):
        some = order[:count]
        assert torch.equal(encode_in_passes(model, pixels[some], size), together[some])


def test_passes_on_a_cpu_are_of_sixteen_images_at_most(tmp_path: Path) -> None:
    model = load(str(save_tiny_model(tmp_path / "model")), "cpu")
    assert [pass_size(model, batch_size) for batch_size in (1, 16, 64)] == [1, 16, 16]
