"""Run a loaded model: prepare it for fast inference, and encode batches of pixels and texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cloob_cli.core.model import CloobModel
from cloob_cli.core.resnet import Bottleneck, ModifiedResNet
from cloob_cli.core.token_rows import cut_to_longest
from cloob_cli.core.transformer import VisionTransformer
from cloob_cli.data.preprocess import normalize

_CPU_PASS = 16  # images


def prepare_for_inference(model: CloobModel) -> CloobModel:
    """Make a loaded model faster where that keeps its results (differences of about 1e-7), in place; returns it.

    Convolutions of a ResNet or of a vision transformer's stem take their batch normalizations in and keep their weights
    channels last. Afterwards the model is good for encoding only: its parameters no longer have the names that a model
    folder stores.
    """
    if isinstance(model.visual, ModifiedResNet) or model.config.vision.stem == "conv":
        fold_batch_norm(model.visual)
        model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def fold_batch_norm(tower: ModifiedResNet | VisionTransformer) -> None:
    """Replace every convolution and the batch normalization behind it by one convolution, in place."""
    for module in tower.modules():
        if isinstance(module, ModifiedResNet | Bottleneck):
            for number in (1, 2, 3):
                _fold(module, f"conv{number}", f"bn{number}")
        if isinstance(module, Bottleneck) and isinstance(module.downsample, nn.Sequential):
            _fold(module.downsample, "0", "1")
        if isinstance(module, VisionTransformer) and isinstance(module.stem, nn.Sequential):
            for number in range(0, len(module.stem), 3):  # convolution, norm, ReLU
                _fold(module.stem, str(number), str(number + 1))


def _fold(owner: nn.Module, convolution: str, norm: str) -> None:
    setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm)))
    setattr(owner, norm, nn.Identity())


def device_of(model: CloobModel) -> torch.device:
    """The device of the model's weights."""
    return model.logit_scale.device


def encode_images(model: CloobModel, pixels: Tensor) -> Tensor:
    """Embeddings, unit-norm float32 [B, D] on the CPU, of cropped images uint8 [B, H, W, 3]."""
    with torch.inference_mode():
        normalized = normalize(pixels.to(device_of(model)), model.config.preprocess)
        return model.encode_image(normalized).float().cpu()


def pass_size(model: CloobModel, batch_size: int) -> int:
    """The number of images that go through the model at a time, where `batch_size` are read at a time.

    A CPU gains nothing by more than 16 of them.
    """
    return min(batch_size, _CPU_PASS) if device_of(model).type == "cpu" else batch_size


def encode_in_passes(model: CloobModel, pixels: Tensor, size: int) -> Tensor:
    """Encode images as `encode_images` does, in passes of exactly `size` images; the last is filled up with black ones.

    Matrix products add in an order that depends on their shape. In passes of one shape an image's embedding is the
    same to the bit whatever stands beside it.
    """
    passes = []
    for part in pixels.split(size):
        filled = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])]) if len(part) < size else part
        passes.append(encode_images(model, filled)[: len(part)])
    return torch.cat(passes)


def encode_texts(model: CloobModel, texts: list[str]) -> Tensor:
    """Embeddings, unit-norm float32 [B, D] on the CPU, of texts."""
    assert model.tokenize is not None
    with torch.inference_mode():
        tokens = cut_to_longest(model.tokenize(texts), model.config.text)
        return model.encode_text(tokens.to(device_of(model))).float().cpu()


def encode_texts_in_passes(model: CloobModel, texts: list[str], size: int) -> Tensor:
    """Encode texts as `encode_texts` does, so that an embedding is the same to the bit whatever texts are beside it.

    Texts that are cut to the same length go through the model together, in passes of exactly `size` texts.
    """
    assert model.tokenize is not None
    tokens = model.tokenize(texts)
    lengths = torch.tensor([cut_to_longest(row[None], model.config.text).shape[-1] for row in tokens])
    result = torch.empty(len(texts), model.config.embed_dim)
    with torch.inference_mode():
        for length in lengths.unique().tolist():
            for places in (lengths == length).nonzero()[:, 0].split(size):
                rows = tokens[places, :length]
                filled = torch.cat([rows, rows[:1].expand(size - len(rows), -1)]).to(device_of(model))
                result[places] = model.encode_text(filled)[: len(rows)].float().cpu()
    return result
