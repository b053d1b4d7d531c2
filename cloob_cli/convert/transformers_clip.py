"""Folders of transformers' `CLIPModel`: `config.json` with `model_type = "clip"`, and what its processor does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from torch import Tensor

from cloob_cli.convert.folder_formats import PREPROCESSOR_FILES, read_object
from cloob_cli.convert.open_clip import inverse_temperature
from cloob_cli.convert.torch_file import plain_tensor
from cloob_cli.convert.transformers_names import TOKENS, from_transformers
from cloob_cli.core.model_config import CLIP_MEAN, CLIP_STD, CLIP_VOCAB_SIZE, Activation, ModelConfig, PreprocessConfig
from cloob_cli.errors import ConversionError, MissingConfigurationError
from cloob_cli.strict_model import StrictModel, parse

_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_WHERE = "transformers' configuration"


class _Tower(StrictModel):
    # What is left out has the value that transformers gives it; what is not here changes nothing that is computed.
    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_act: Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    num_hidden_layers: int = 12


class Vision(_Tower):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: Literal[3] = 3
    image_size: int = 224
    patch_size: int = 32


class Text(_Tower):
    vocab_size: int = CLIP_VOCAB_SIZE
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    eos_token_id: int | list[int] | None = None


class UpstreamConfig(StrictModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    projection_dim: int = 512
    vision_config: Vision
    text_config: Text


class Processor(StrictModel):
    """The steps of `CLIPImageProcessor`; its older files have numbers in the places of both sizes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: bool = True
    do_center_crop: bool = True
    size: int | dict[str, int | None] | None = None
    crop_size: int | dict[str, int | None] | None = None
    resample: Literal[2, 3] = 3
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD


def recognizes(checkpoint: Any) -> bool:
    """True where a file's contents have the names of CLIPModel's tensors."""
    return isinstance(checkpoint, Mapping) and TOKENS in checkpoint


def refuse_others(upstream: Mapping[str, Any], where: str) -> None:
    """Raise ConversionError where a `config.json` of transformers is another model's than CLIPModel's."""
    kind = upstream.get("model_type")
    if kind != "clip":
        raise ConversionError(
            f"{where}: the model type {str(kind)[:60]!r} of transformers is not supported",
            "cloob opens CLIPModel (model_type 'clip')",
        )


def convert(
    checkpoint: Any, upstream: dict[str, Any] | None, architecture: str | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Our configuration and tensors, and the names of the source's tensors that have no place in them.

    Args:
        upstream: the contents of `config.json`.
        architecture: not used.

    Raises:
        ConversionError: the configuration is missing or another model's, or the tensors are not CLIPModel's.
    """
    config = describe(checkpoint, upstream)
    assert isinstance(config.vision.layers, int)
    tensors, ignored = from_transformers(checkpoint, config.vision.layers, config.text.layers, plain_tensor)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    return config, tensors, ignored


def describe(checkpoint: Any, upstream: dict[str, Any] | None) -> ModelConfig:
    """Our configuration alone, without what the processor's files say (`preprocessing`).

    Raises:
        ConversionError: as `convert`.
    """
    if upstream is None:
        raise MissingConfigurationError("this layout needs the folder's config.json", "give it with --config FILE")
    refuse_others(upstream, "config.json")
    if not isinstance(checkpoint, Mapping):
        raise ConversionError("the checkpoint is not a mapping of names to tensors")
    described = parse(UpstreamConfig, _effective(upstream), _WHERE, ConversionError)
    vision, text = described.vision_config, described.text_config
    return parse(
        ModelConfig,
        {
            "embed_dim": described.projection_dim,
            "vision": _tower(vision)
            | {"kind": "vit", "image_size": vision.image_size, "patch_size": vision.patch_size},
            "text": _tower(text) | {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size},
            "tokenizer": {"kind": "clip" if text.vocab_size == CLIP_VOCAB_SIZE else "bpe"},
            "inv_tau": inverse_temperature(checkpoint),
            "source": {"format": "transformers"},
        },
        _WHERE,
        ConversionError,
    )


def check_end(upstream: dict[str, Any], end: int) -> None:
    """Raise ConversionError where texts are read at another token than the tokenizer's end token.

    Old configurations name the token 2; transformers then reads at the highest id, as CLIP does.
    """
    named = parse(UpstreamConfig, _effective(upstream), _WHERE, ConversionError).text_config.eos_token_id
    if named not in (None, 2, end):
        raise ConversionError(
            f"texts are read at the token {named} (eos_token_id), and the tokenizer ends them with {end}"
        )


def preprocessing(folder: Path, image_size: int) -> PreprocessConfig:
    """The steps that the processor's file in a folder says; without one, those of CLIPImageProcessor by itself.

    Raises:
        ConversionError: the file asks for steps that cloob has not, or for another size than the tower's.
    """
    file = next((folder / name for name in PREPROCESSOR_FILES if (folder / name).is_file()), None)
    if file is None:
        return PreprocessConfig()
    described = read_object(file)
    described = described.get("image_processor", described)
    if not isinstance(described, dict):
        raise ConversionError(f"{file} describes no image processor")
    said = parse(Processor, _said(described), str(file), ConversionError)
    square = {"height": image_size, "width": image_size}
    crop = {"height": said.crop_size, "width": said.crop_size} if isinstance(said.crop_size, int) else said.crop_size
    crops = said.do_center_crop and crop not in (None, square)
    if said.size in (None, image_size, {"shortest_edge": image_size}) and said.do_center_crop and not crops:
        resize: Literal["shortest", "squash"] = "shortest"
    elif said.size == square and not crops:
        resize = "squash"
    else:
        raise ConversionError(
            f"{file}: images resized to {said.size} and cropped to {crop if said.do_center_crop else 'nothing'} for a "
            f"tower of {image_size} pixels: not supported",
            f"supported: the short side or both sides to {image_size}, then a center crop of {image_size}",
        )
    return PreprocessConfig(
        mean=said.image_mean if said.do_normalize else (0.0, 0.0, 0.0),
        std=said.image_std if said.do_normalize else (1.0, 1.0, 1.0),
        resize=resize,
        interpolation=_RESAMPLING[said.resample],
    )


def _effective(upstream: dict[str, Any]) -> dict[str, Any]:
    """Old files hold a tower twice: then the second description counts, as in transformers."""
    towers = {}
    for tower in ("vision_config", "text_config"):
        second = upstream.get(f"{tower}_dict")
        said = second if second is not None else upstream.get(tower) or {}
        towers[tower] = _said(said) if isinstance(said, dict) else said
    return upstream | towers


def _said(described: dict[str, Any]) -> dict[str, Any]:
    """The keys that have a value; null stands for what transformers does by itself."""
    return {key: value for key, value in described.items() if value is not None}


def _tower(tower: Vision | Text) -> dict[str, Any]:
    return {
        "width": tower.hidden_size,
        "layers": tower.num_hidden_layers,
        "heads": tower.num_attention_heads,
        "mlp_ratio": tower.intermediate_size / tower.hidden_size if tower.hidden_size > 0 else 0,
        "activation": _ACTIVATIONS[tower.hidden_act],
        "norm_epsilon": tower.layer_norm_eps,
    }
