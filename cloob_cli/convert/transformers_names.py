"""The names that transformers' CLIPModel gives a CLIP's tensors, and the layout that it keeps them in.

Its names differ from ours (open_clip's), it keeps query, key and value projections apart, and its projections lie the
other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cloob_cli.errors import ConversionError

_NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so there
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

TOKENS = _NAMES["token_embedding.weight"]  # the name that shows a CLIPModel


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of CLIPModel, in its layout."""
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in _NAMES:
            result[_NAMES[name]] = tensor
        elif name in _TRANSPOSED:
            result[_TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            result |= _split_block(name, tensor)
    return result


def from_transformers(
    weights: Mapping[str, Any], image_layers: int, text_layers: int, plain: Callable[[str, Any], Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """CLIPModel's weights under our names, and the names of those that the model does not compute with.

    Args:
        plain: a tensor of the file, by its name, as an ordinary tensor of its own.

    Raises:
        ConversionError: a tensor is missing, or is none of CLIPModel's.
    """
    left = dict(weights)

    def take(name: str) -> Tensor:
        if name not in left:
            raise ConversionError(f"the checkpoint lacks the tensor '{name}'")
        return plain(name, left.pop(name))

    result = {ours: take(theirs) for ours, theirs in _NAMES.items()}
    result |= {ours: take(theirs).T.contiguous() for ours, theirs in _TRANSPOSED.items()}
    for (tower, theirs), layers in zip(_TOWERS.items(), (image_layers, text_layers), strict=True):
        for layer in range(layers):
            block, source = f"{tower}{layer}", f"{theirs}{layer}"
            for kind in ("weight", "bias"):
                three = [take(f"{source}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
                result[f"{block}.attn.in_proj_{kind}"] = _joined(three, source)
                for ours, module in _IN_BLOCK.items():
                    result[f"{block}.{ours}.{kind}"] = take(f"{source}.{module}.{kind}")
    for name in left:
        if not name.endswith(".position_ids"):  # 0, 1, 2, ...
            raise ConversionError(f"the checkpoint holds the tensor '{name}', which no CLIPModel of this size has")
    return result, list(left)


def _split_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a block; the joint projection of queries, keys and values becomes three."""
    prefix = next(prefix for prefix in _TOWERS if name.startswith(prefix))
    number, part = name.removeprefix(prefix).split(".", 1)
    target = f"{_TOWERS[prefix]}{number}."
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        three = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{target}self_attn.{letter}_proj.{kind}": piece.contiguous() for letter, piece in three}
    module, kind = part.rsplit(".", 1)
    return {f"{target}{_IN_BLOCK[module]}.{kind}": tensor}


def _joined(three: list[Tensor], where: str) -> Tensor:
    try:
        return torch.cat(three)
    except RuntimeError:
        raise ConversionError(f"the projections of '{where}' do not fit together") from None
