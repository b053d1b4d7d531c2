"""Checkpoints of crowsonkb/cloob-training: a pickle of Haiku parameters, (image tower, text tower).

The towers have neither the pre-norm nor the post-norm of CLIP, biases in their projections, and a text tower that is
not causal, reads its first token and masks the query axis. They were trained with `jax.nn.gelu`, which is the tanh
form (the author's PyTorch port has the erf form).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from cloob_cli.convert.architecture_from_shapes import count_layers, grid_of, heads_of
from cloob_cli.core.model_config import CLIP_MEAN, CLIP_STD, ModelConfig
from cloob_cli.errors import ConversionError
from cloob_cli.strict_model import StrictModel, parse

IMAGE, TEXT = "vi_t_image_encoder", "text_encoder"


class Normalize(StrictModel):
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


class ImageEncoder(StrictModel):
    type: Literal["ViT"] = "ViT"
    image_size: int
    input_channels: Literal[3] = 3
    normalize: Normalize = Normalize()
    patch_size: int
    n_layers: int
    d_model: int
    n_heads: int


class TextEncoder(StrictModel):
    type: Literal["transformer"] = "transformer"
    tokenizer: Literal["clip"] = "clip"
    text_size: int
    vocab_size: int
    n_layers: int
    d_model: int
    n_heads: int


class UpstreamConfig(StrictModel):
    """The JSON beside the author's checkpoints."""

    model_config = ConfigDict(extra="ignore")

    d_embed: int
    inv_tau: float = 30.0
    scale_hopfield: float = 15.0
    image_encoder: ImageEncoder
    text_encoder: TextEncoder


def convert(
    checkpoint: Any, upstream: dict[str, Any] | None, architecture: str | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Our configuration and tensors, and the names of the source's arrays that have no place in them.

    Args:
        upstream: the checkpoint's own configuration; without it the shapes decide, with a head for 64 channels.
        architecture: not used; the layout leaves nothing open but the number of heads.

    Raises:
        ConversionError: the checkpoint does not have this layout.
    """
    arrays = _arrays(checkpoint)
    if upstream is None:
        described = _from_shapes(arrays)
    else:
        described = parse(UpstreamConfig, upstream, "the configuration", ConversionError)
    config = parse(ModelConfig, _description(described, checkpoint), "the configuration", ConversionError)
    rows = _rows(described.image_encoder.n_layers, described.text_encoder.n_layers)
    tensors = {target: _assemble(arrays, sources, arrange) for target, (sources, arrange) in rows.items()}
    if arrays:
        raise ConversionError(f"the checkpoint holds the array '{next(iter(arrays))}', which this layout does not have")
    tensors["logit_scale"] = torch.tensor(math.log(described.inv_tau))
    ignored = [key for key in checkpoint if key != "params" and not isinstance(checkpoint[key], str | int | float)]
    return config, tensors, ignored


def _arrays(checkpoint: Any) -> dict[str, np.ndarray]:
    """Every parameter by "module/name", both towers in one."""
    parameters = checkpoint.get("params") if isinstance(checkpoint, Mapping) else None
    if not isinstance(parameters, list | tuple) or len(parameters) != 2:
        raise ConversionError("the checkpoint holds no pair of parameters", "is it in crowsonkb's form?")
    arrays: dict[str, np.ndarray] = {}
    for tower in parameters:
        for module, group in tower.items() if isinstance(tower, Mapping) else ():
            for name, array in group.items() if isinstance(group, Mapping) else ():
                if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or f"{module}/{name}" in arrays:
                    raise ConversionError(f"'{module}/{name}' is not one array of floating-point numbers")
                arrays[f"{module}/{name}"] = array
    return arrays


def _description(upstream: UpstreamConfig, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    image, text = upstream.image_encoder, upstream.text_encoder
    epoch = checkpoint.get("epoch")
    return {
        "embed_dim": upstream.d_embed,
        "vision": {
            "kind": "vit",
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "width": image.d_model,
            "layers": image.n_layers,
            "heads": image.n_heads,
            "activation": "gelu_tanh",
            "norm_pre": False,
            "norm_post": False,
            "projection_bias": True,
        },
        "text": {
            "context_length": text.text_size,
            "vocab_size": text.vocab_size,
            "width": text.d_model,
            "layers": text.n_layers,
            "heads": text.n_heads,
            "activation": "gelu_tanh",
            "causal": False,
            "pooling": "first",
            "padding": "queries",
            "norm_final": False,
            "projection_bias": True,
        },
        "preprocess": {"mean": image.normalize.mean, "std": image.normalize.std},
        "inv_tau": upstream.inv_tau,
        "scale_hopfield": upstream.scale_hopfield,
        "source": {"format": "crowsonkb"} | ({"epoch": epoch} if isinstance(epoch, int) else {}),
    }


def _from_shapes(arrays: dict[str, np.ndarray]) -> UpstreamConfig:
    try:
        patch, _, _, image_width = arrays[f"{IMAGE}/embed/w"].shape
        positions, _ = arrays[f"{IMAGE}/pos_embed/w"].shape
        vocab_size, text_width = arrays[f"{TEXT}/embed/embeddings"].shape
        text_size, _ = arrays[f"{TEXT}/pos_embed/w"].shape
        (embed_dim,) = arrays[f"{TEXT}/proj/b"].shape
    except (KeyError, ValueError) as problem:
        raise ConversionError(f"the checkpoint is not crowsonkb's: {problem} is missing or misshapen") from None
    image = ImageEncoder(
        image_size=patch * grid_of(positions),
        patch_size=patch,
        n_layers=count_layers(arrays, rf"{IMAGE}/layer_(\d+)/"),
        d_model=image_width,
        n_heads=heads_of(image_width, "image"),
    )
    text = TextEncoder(
        text_size=text_size,
        vocab_size=vocab_size,
        n_layers=count_layers(arrays, rf"{TEXT}/layer_(\d+)/"),
        d_model=text_width,
        n_heads=heads_of(text_width, "text"),
    )
    return UpstreamConfig(d_embed=embed_dim, image_encoder=image, text_encoder=text)


Arrange = Literal["as is", "transposed", "convolution"]


def _rows(image_layers: int, text_layers: int) -> dict[str, tuple[list[str], Arrange]]:
    """For every tensor of ours the arrays it is made of, one below the other, and how they lie there."""
    rows: dict[str, tuple[list[str], Arrange]] = {
        "visual.class_embedding": ([f"{IMAGE}/class_embed"], "as is"),
        "visual.conv1.weight": ([f"{IMAGE}/embed/w"], "convolution"),
        "visual.positional_embedding": ([f"{IMAGE}/pos_embed/w"], "as is"),
        "visual.proj.weight": ([f"{IMAGE}/proj/w"], "transposed"),
        "visual.proj.bias": ([f"{IMAGE}/proj/b"], "as is"),
        "token_embedding.weight": ([f"{TEXT}/embed/embeddings"], "as is"),
        "positional_embedding": ([f"{TEXT}/pos_embed/w"], "as is"),
        "text_projection.weight": ([f"{TEXT}/proj/w"], "transposed"),
        "text_projection.bias": ([f"{TEXT}/proj/b"], "as is"),
    }
    towers = [(IMAGE, "visual.transformer.resblocks", image_layers), (TEXT, "transformer.resblocks", text_layers)]
    for tower, target, layers in towers:
        for layer in range(layers):
            rows |= _block_rows(f"{tower}/layer_{layer}", f"{target}.{layer}")
    return rows


def _block_rows(source: str, target: str) -> dict[str, tuple[list[str], Arrange]]:
    attention, mlp = f"{source}/self_attention", f"{source}/feed_forward"
    heads = [f"{attention}/multi_head_attention/{part}" for part in ("query", "key", "value")]
    rows: dict[str, tuple[list[str], Arrange]] = {
        f"{target}.attn.in_proj_weight": ([f"{head}/w" for head in heads], "transposed"),
        f"{target}.attn.in_proj_bias": ([f"{head}/b" for head in heads], "as is"),
    }
    linear = [
        ("attn.out_proj", f"{attention}/multi_head_attention/linear"),
        ("mlp.c_fc", f"{mlp}/linear_0"),
        ("mlp.c_proj", f"{mlp}/linear_1"),
    ]
    for name, module in linear:
        rows[f"{target}.{name}.weight"] = ([f"{module}/w"], "transposed")
        rows[f"{target}.{name}.bias"] = ([f"{module}/b"], "as is")
    for name, module in (("ln_1", f"{attention}/layer_norm"), ("ln_2", f"{mlp}/layer_norm")):
        rows[f"{target}.{name}.weight"] = ([f"{module}/scale"], "as is")
        rows[f"{target}.{name}.bias"] = ([f"{module}/offset"], "as is")
    return rows


def _assemble(arrays: dict[str, np.ndarray], sources: list[str], arrange: Arrange) -> Tensor:
    """One tensor of ours; the arrays it takes are gone from `arrays` afterwards, so that none is taken twice."""
    taken = []
    for name in sources:
        if name not in arrays:
            raise ConversionError(f"the checkpoint lacks the array '{name}'")
        array = arrays.pop(name)
        if arrange == "transposed":  # Haiku multiplies from the left: [inputs, outputs]
            array = array.T
        elif arrange == "convolution":  # Haiku's [height, width, inputs, outputs]
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        taken.append(torch.from_numpy(np.array(array, dtype=np.float32, order="C")))
    try:
        return torch.cat(taken) if len(taken) > 1 else taken[0]
    except RuntimeError:
        raise ConversionError(f"the arrays {', '.join(sources)} do not fit together") from None
