"""Models of open_clip: `open_clip_config.json` and tensors that have our names already.

CLIP's modified ResNets and vision transformers with CLIP's text tower. What else open_clip builds (towers of timm and
of transformers, CoCa, SigLIP) is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from cloob_cli.convert.torch_file import plain_tensor
from cloob_cli.core.model_config import CLIP_MEAN, CLIP_STD, Activation, ModelConfig
from cloob_cli.errors import ConversionError, MissingConfigurationError
from cloob_cli.strict_model import StrictModel, parse

# In state dicts of some age or of OpenAI: what is computed from the rest.
_NOT_WEIGHTS = {"attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size"}
_WHERE = "open_clip's configuration"
# Keys of towers that are refused, which models of CLIP's own have as well.
_UNUSED = ("timm_", "hf_model", "hf_proj", "hf_pooler")
_HINT = "cloob opens CLIP's ResNets and vision transformers with CLIP's text tower"


class Norm(StrictModel):
    eps: float = Field(default=1e-5, gt=0)


class Gelu(StrictModel):
    approximate: Literal["none", "tanh"] = "none"


class _Tower(StrictModel):
    """Both towers' keys; of those that change what is computed only the values that CLIP has."""

    layers: int | list[int] = 12
    mlp_ratio: float = 4.0
    norm_kwargs: Norm = Norm()
    act_kwargs: Gelu = Gelu()
    block_type: Literal["default"] = "default"
    final_ln_after_pool: bool = False  # of one token that is read it is the same
    output_tokens: bool = False


class Vision(_Tower):
    width: int = 768
    head_width: int = Field(default=64, gt=0)
    patch_size: int = 16
    image_size: int | list[int] = 224
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable"] = "learnable"
    pool_type: Literal["tok"] = "tok"
    patch_dropout: float = 0.0  # in training only
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8


class Text(_Tower):
    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "first"] = "argmax"
    proj_type: Literal["linear"] = "linear"
    proj_bias: bool = False
    pad_id: int = 0  # of towers with a class token only
    eos_id: int = 2  # of another pooling only
    hf_tokenizer_name: str = ""
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict)


class Model(StrictModel):
    embed_dim: int
    vision_cfg: Vision
    text_cfg: Text
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: float | None = None
    nonscalar_logit_scale: bool = False
    output_dict: bool = False


class Preprocess(StrictModel):
    # Keys of later programs describe what is in the towers anyway.
    model_config = ConfigDict(extra="ignore", frozen=True)

    size: int | list[int] | None = None
    mode: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"


def state_of(checkpoint: Any) -> dict[str, Any]:
    """The tensors of a checkpoint by their names in open_clip, or of one that it wrote in training.

    Raises:
        ConversionError: it holds none.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ConversionError("the checkpoint is not a mapping of names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def recognizes(checkpoint: Any) -> bool:
    """True where a file's contents have the names of open_clip's tensors."""
    try:
        names = state_of(checkpoint).keys()
    except ConversionError:
        return False
    return "logit_scale" in names and any(name.startswith("visual.") for name in names)


def convert(
    checkpoint: Any, upstream: dict[str, Any] | None, architecture: str | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Our configuration and tensors, and the names of the source's tensors that have no place in them.

    Args:
        upstream: the contents of `open_clip_config.json`, or of one of open_clip's `model_configs`.
        architecture: not used.

    Raises:
        ConversionError: open_clip's configuration is not given, or describes another kind of model.
    """
    config = describe(checkpoint, upstream)
    tensors, ignored = with_our_names(checkpoint)
    return config, tensors, ignored


def with_our_names(checkpoint: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint under our names, and the names of those that are computed from the rest.

    Raises:
        ConversionError: two of them stand for one, or one is not an ordinary tensor.
    """
    tensors: dict[str, Tensor] = {}
    ignored = []
    for name, tensor in state_of(checkpoint).items():
        target = name.removeprefix("text.")  # where the text tower is a module of its own
        if target in tensors:
            raise ConversionError(f"two tensors of the checkpoint stand for '{target}'")
        if name in _NOT_WEIGHTS:
            ignored.append(name)
        else:
            tensors[target] = plain_tensor(name, tensor)
    if tensors["logit_scale"].numel() == 1:
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    for name in [name for name in tensors if name.endswith("running_mean")]:
        # Some programs leave out these counters; nothing here computes with them.
        tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return tensors, ignored


def describe(checkpoint: Any, upstream: dict[str, Any] | None) -> ModelConfig:
    """Our configuration alone.

    Raises:
        ConversionError: as `convert`.
    """
    if upstream is None:
        raise MissingConfigurationError(
            "the weights do not show whether they were trained with GELU or QuickGELU",
            "give open_clip's configuration with --config FILE; weights of OpenAI: --format openai",
        )
    source = state_of(checkpoint)
    if "logit_bias" in source:
        raise ConversionError("a bias of the logits, as SigLIP has it, is not supported", _HINT)
    model = upstream.get("model_cfg", upstream)
    preprocess = upstream.get("preprocess_cfg") or {}
    if not isinstance(model, dict) or not isinstance(preprocess, dict):
        raise ConversionError(f"{_WHERE} has no model_cfg")
    _refuse_others(model)
    described = parse(Model, _without_nothing(model), _WHERE, ConversionError)
    pixels = parse(Preprocess, _without_nothing(preprocess), f"{_WHERE}, preprocess_cfg", ConversionError)
    return parse(
        ModelConfig,
        _description(described, pixels) | {"inv_tau": inverse_temperature(source), "source": {"format": "open_clip"}},
        _WHERE,
        ConversionError,
    )


def inverse_temperature(source: Mapping[str, Any]) -> float:
    """exp(logit_scale) of a checkpoint.

    Raises:
        ConversionError: it is missing, or not one finite number.
    """
    if "logit_scale" not in source:
        raise ConversionError("the checkpoint lacks the tensor 'logit_scale'")
    logarithm = plain_tensor("logit_scale", source["logit_scale"])
    if logarithm.numel() != 1 or not math.isfinite(float(logarithm)) or float(logarithm) > 80:
        raise ConversionError("the checkpoint's temperature is not one finite number")
    return float(f"{math.exp(float(logarithm)):.6g}")  # float32 keeps no more digits, and 100 should read as 100


def _refuse_others(model: dict[str, Any]) -> None:
    vision, text = (model.get(f"{tower}_cfg") for tower in ("vision", "text"))
    image_tower = vision.get("timm_model_name") if isinstance(vision, dict) else None
    text_tower = text.get("hf_model_name") if isinstance(text, dict) else None
    kinds = {"siglip": "SigLIP", "convnext": "ConvNeXt"}
    named = next((kind for sign, kind in kinds.items() if sign in str(image_tower).lower()), None)
    reasons = [
        (model.get("multimodal_cfg"), "CoCa"),
        (model.get("init_logit_bias") is not None, "SigLIP"),
        (image_tower, f"{named} (timm's {image_tower})" if named else f"timm's image tower {image_tower}"),
        (text_tower, f"the text tower {text_tower} of transformers"),
        (isinstance(vision, dict) and vision.get("attentional_pool"), "an attentional pool of the image tower"),
    ]
    if found := [reason for holds, reason in reasons if holds]:
        raise ConversionError(f"{', '.join(found)}: not supported", _HINT)


def _without_nothing(described: dict[str, Any]) -> dict[str, Any]:
    """The keys that say something: null and false are what open_clip does without them, and timm's are not used."""
    said = {}
    for key, value in described.items():
        if isinstance(value, dict):
            said[key] = _without_nothing(value)
        elif value is not None and value is not False and not key.startswith(_UNUSED):
            said[key] = value
    return said


def _description(model: Model, preprocess: Preprocess) -> dict[str, Any]:
    vision, text = model.vision_cfg, model.text_cfg
    size = _side(vision.image_size, "the images")
    if preprocess.size is not None and _side(preprocess.size, "preprocessing") != size:
        raise ConversionError(f"{_WHERE}: images of {preprocess.size} pixels for a tower of {size}")
    image: dict[str, Any] = {"image_size": size, "width": vision.width, "layers": vision.layers}
    if isinstance(vision.layers, list):
        image |= {"kind": "resnet", "heads": max(1, vision.width * 32 // vision.head_width)}
    else:
        image |= {
            "kind": "vit",
            "patch_size": vision.patch_size,
            "heads": max(1, vision.width // vision.head_width),
            "norm_pre": not vision.no_ln_pre,
            **_blocks(vision, vision.width, model.quick_gelu),
        }
    return {
        "embed_dim": model.embed_dim,
        "vision": image,
        "text": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "layers": text.layers,
            "heads": text.heads,
            "causal": not text.no_causal_mask,
            "pooling": "end" if text.pool_type == "argmax" else "first",
            "projection_bias": text.proj_bias,
            **_blocks(text, text.width, model.quick_gelu),
        },
        "preprocess": {
            "mean": preprocess.mean,
            "std": preprocess.std,
            "resize": preprocess.resize_mode,
            "interpolation": "bilinear" if preprocess.interpolation == "bilinear" else "bicubic",
        },
        "tokenizer": _tokenizer(text),
    }


def _blocks(tower: _Tower, width: int, quick_gelu: bool) -> dict[str, Any]:
    activation: Activation = "gelu_tanh" if tower.act_kwargs.approximate == "tanh" else "gelu"
    return {
        "mlp_ratio": int(width * tower.mlp_ratio) / width,  # open_clip rounds down
        "activation": "quick_gelu" if quick_gelu else activation,
        "norm_epsilon": tower.norm_kwargs.eps,
    }


def _tokenizer(text: Text) -> dict[str, Any]:
    own = bool(text.hf_tokenizer_name)
    settings = dict(text.tokenizer_kwargs)
    cleaning = settings.pop("clean", "whitespace" if own else "lower")
    if settings or cleaning not in ("lower", "whitespace"):
        said = settings or {"clean": cleaning}
        raise ConversionError(f"{_WHERE}: a tokenizer with {said} is not supported")
    return {"kind": "bpe" if own else "clip", "lower_case": cleaning == "lower"}


def _side(size: int | list[int], what: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConversionError(f"{_WHERE}: {what} are not square ({size}), which is not supported")
    return sides.pop()
