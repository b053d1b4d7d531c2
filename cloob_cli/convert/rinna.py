"""rinna/japanese-cloob-vit-b-16 (program: rinnakk/japanese-clip): a Hugging Face ViT and a RoBERTa.

Both towers are read at their first token after the last norm and projected without bias. The text tower is given
positions 0, 1, 2, ... (not RoBERTa's own, which start behind the padding id), and padding is attended to by nobody.
A text is a [CLS] token and at most 77 ids, without an end token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from cloob_cli.convert.torch_file import plain_tensor
from cloob_cli.core.model_config import Activation, ModelConfig
from cloob_cli.errors import ConversionError, MissingConfigurationError
from cloob_cli.strict_model import StrictModel, parse

MOST_TOKENS = 78  # the reference tokenizer's 77 and the [CLS] before them

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


class _Tower(StrictModel):
    # What is left out has the value that transformers gives it.
    model_config = ConfigDict(extra="ignore")

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu"] = "gelu"
    layer_norm_eps: float = 1e-12


class VisionTower(_Tower):
    model_type: Literal["vit"]
    image_size: int = 224
    patch_size: int = 16
    qkv_bias: Literal[True] = True


class TextTower(_Tower):
    model_type: Literal["roberta", "bert"]
    vocab_size: int
    max_position_embeddings: int = 512
    pad_token_id: int = 1


class UpstreamConfig(StrictModel):
    """The `config.json` of the Hub's repository."""

    model_config = ConfigDict(extra="ignore")

    projection_dim: int = 512
    init_inv_tau: float = 30.0
    scale_hopfield: float = 15.0
    vision_config: VisionTower
    text_config: TextTower


def recognizes(checkpoint: Any) -> bool:
    """True where a file's contents look like this model's."""
    return isinstance(checkpoint, Mapping) and any(str(name).startswith("vision_model.") for name in checkpoint)


def convert(
    checkpoint: Any, upstream: dict[str, Any] | None, architecture: str | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Our configuration and tensors, and the names of the source's tensors that have no place in them.

    Args:
        upstream: the repository's `config.json`.
        architecture: not used.

    Raises:
        ConversionError: the checkpoint does not have this layout, or its configuration is not given.
    """
    if upstream is None:
        raise MissingConfigurationError("this layout needs the repository's config.json", "give it with --config FILE")
    if not isinstance(checkpoint, Mapping):
        raise ConversionError("the checkpoint is not a mapping of names to tensors")
    described = parse(UpstreamConfig, upstream, "the configuration", ConversionError)
    source = _Source(checkpoint)
    tensors = {
        **_vision(source, described.vision_config),
        **_text(source, described.text_config),
        "visual.proj": source.take("visual_projection.weight").T.contiguous(),
        "text_projection": source.take("text_projection.weight").T.contiguous(),
        "logit_scale": torch.tensor(math.log(described.init_inv_tau)),
    }
    config = parse(ModelConfig, _description(described), "the configuration", ConversionError)
    return config, tensors, source.finish()


class _Source:
    """The checkpoint's tensors under the names of transformers 4; each can be taken once."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self._left: dict[str, tuple[str, Any]] = {}
        for name, tensor in checkpoint.items():
            old = _transformers_4_name(str(name))
            if old in self._left:
                raise ConversionError(f"two tensors of the checkpoint stand for '{old}'")
            self._left[old] = (str(name), tensor)
        self.ignored: list[str] = []

    def take(self, name: str) -> Tensor:
        if name not in self._left:
            raise ConversionError(f"the checkpoint lacks the tensor '{name}'")
        original, tensor = self._left.pop(name)
        return plain_tensor(original, tensor)

    def layer(self, name: str) -> dict[str, Tensor]:
        return {part: self.take(f"{name}.{part}") for part in ("weight", "bias")}

    def finish(self) -> list[str]:
        """The names of what was not taken; only what the model does not compute with may be left."""
        for name, (original, _) in self._left.items():
            if not name.endswith("position_ids") and ".pooler." not in name:
                raise ConversionError(f"the checkpoint holds '{original}', which this layout does not have")
            self.ignored.append(original)
        return self.ignored


def _vision(source: _Source, tower: VisionTower) -> dict[str, Tensor]:
    embeddings = "vision_model.embeddings"
    tensors = {
        "visual.class_embedding": source.take(f"{embeddings}.cls_token").flatten(),
        "visual.positional_embedding": source.take(f"{embeddings}.position_embeddings").flatten(0, -2),
        **_renamed("visual.conv1", source.layer(f"{embeddings}.patch_embeddings.projection")),
        **_renamed("visual.ln_post", source.layer("vision_model.layernorm")),
    }
    for layer in range(tower.num_hidden_layers):
        block, target = f"vision_model.encoder.layer.{layer}", f"visual.transformer.resblocks.{layer}"
        tensors |= _attention(source, f"{block}.attention.attention", f"{block}.attention.output.dense", target)
        tensors |= _mlp(source, block, target)
        tensors |= _renamed(f"{target}.ln_1", source.layer(f"{block}.layernorm_before"))
        tensors |= _renamed(f"{target}.ln_2", source.layer(f"{block}.layernorm_after"))
    return tensors


def _text(source: _Source, tower: TextTower) -> dict[str, Tensor]:
    embeddings = "text_model.embeddings"
    positions = source.take(f"{embeddings}.position_embeddings.weight")
    types = source.take(f"{embeddings}.token_type_embeddings.weight")
    length = _context_length(tower)
    source.ignored.append(f"{embeddings}.position_embeddings.weight[{length}:]")
    source.ignored.append(f"{embeddings}.token_type_embeddings.weight[1:]")
    tensors = {
        "token_embedding.weight": source.take(f"{embeddings}.word_embeddings.weight"),
        "positional_embedding": positions[:length] + types[0],  # every token is of type 0
        **_renamed("ln_embedding", source.layer(f"{embeddings}.LayerNorm")),
    }
    for layer in range(tower.num_hidden_layers):
        block, target = f"text_model.encoder.layer.{layer}", f"transformer.resblocks.{layer}"
        tensors |= _attention(source, f"{block}.attention.self", f"{block}.attention.output.dense", target)
        tensors |= _mlp(source, block, target)
        tensors |= _renamed(f"{target}.ln_1", source.layer(f"{block}.attention.output.LayerNorm"))
        tensors |= _renamed(f"{target}.ln_2", source.layer(f"{block}.output.LayerNorm"))
    return tensors


def _attention(source: _Source, heads: str, output: str, target: str) -> dict[str, Tensor]:
    parts = [source.layer(f"{heads}.{part}") for part in ("query", "key", "value")]
    return {
        f"{target}.attn.in_proj_weight": torch.cat([part["weight"] for part in parts]),
        f"{target}.attn.in_proj_bias": torch.cat([part["bias"] for part in parts]),
        **_renamed(f"{target}.attn.out_proj", source.layer(output)),
    }


def _mlp(source: _Source, block: str, target: str) -> dict[str, Tensor]:
    return {
        **_renamed(f"{target}.mlp.c_fc", source.layer(f"{block}.intermediate.dense")),
        **_renamed(f"{target}.mlp.c_proj", source.layer(f"{block}.output.dense")),
    }


def _renamed(target: str, layer: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{target}.{part}": tensor for part, tensor in layer.items()}


_HEADS = {"q": "query", "k": "key", "v": "value"}

# transformers 5 renamed the parts of its ViT; the released checkpoint has the names of transformers 4.
_RENAMED_PARTS: tuple[tuple[str, Any], ...] = (
    (r"^vision_model\.layers\.(\d+)\.", r"vision_model.encoder.layer.\1."),
    (r"\.attention\.(q|k|v)_proj\.", lambda match: f".attention.attention.{_HEADS[match.group(1)]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def _transformers_4_name(name: str) -> str:
    if name.startswith("vision_model."):
        for pattern, replacement in _RENAMED_PARTS:
            name = re.sub(pattern, replacement, name)
    return name


def _context_length(tower: TextTower) -> int:
    return min(MOST_TOKENS, tower.max_position_embeddings)


def _description(upstream: UpstreamConfig) -> dict[str, Any]:
    vision, text = upstream.vision_config, upstream.text_config
    return {
        "embed_dim": upstream.projection_dim,
        "vision": {
            "kind": "vit",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "activation": _ACTIVATIONS[vision.hidden_act],
            "norm_pre": False,
            "norm_epsilon": vision.layer_norm_eps,
            "patch_bias": True,
        },
        "text": {
            "context_length": _context_length(text),
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "activation": _ACTIVATIONS[text.hidden_act],
            "causal": False,
            "pooling": "first",
            "padding": "keys",
            "pad_id": text.pad_token_id,
            "post_norm": True,
            "norm_embedding": True,
            "norm_final": False,
            "norm_epsilon": text.layer_norm_eps,
        },
        "preprocess": {"interpolation": "bilinear"},
        "tokenizer": {"kind": "roberta", "pad_id": text.pad_token_id, "truncation": "mljku"},
        "inv_tau": upstream.init_inv_tau,
        "scale_hopfield": upstream.scale_hopfield,
        "source": {"format": "rinna"},
    }
