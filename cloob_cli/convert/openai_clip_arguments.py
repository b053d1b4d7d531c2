"""The arguments of OpenAI's CLIP class, which ml-jku/cloob's configuration files hold: read from shapes, and described.

Both programs' models have QuickGELU.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict
from torch import Tensor

from cloob_cli.convert.architecture_from_shapes import count_layers, grid_of, heads_of
from cloob_cli.errors import ConversionError
from cloob_cli.strict_model import StrictModel


class ClipArguments(StrictModel):
    """The arguments that describe a model."""

    model_config = ConfigDict(extra="ignore")

    embed_dim: int
    image_resolution: int
    vision_layers: list[int] | int
    vision_width: int
    vision_patch_size: int | None = None
    context_length: int = 77
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int


def described_by(upstream: ClipArguments) -> dict[str, Any]:
    """The part of our configuration that the arguments decide; the activation is QuickGELU."""
    vision: dict[str, Any] = {
        "kind": "resnet" if isinstance(upstream.vision_layers, list) else "vit",
        "image_size": upstream.image_resolution,
        "width": upstream.vision_width,
        "layers": upstream.vision_layers,
        "activation": "quick_gelu",
    }
    if upstream.vision_patch_size is not None:
        vision["patch_size"] = upstream.vision_patch_size
    text = {
        "context_length": upstream.context_length,
        "vocab_size": upstream.vocab_size,
        "width": upstream.transformer_width,
        "heads": upstream.transformer_heads,
        "layers": upstream.transformer_layers,
        "activation": "quick_gelu",
    }
    return {"embed_dim": upstream.embed_dim, "vision": vision, "text": text}


def arguments_of(tensors: dict[str, Tensor]) -> ClipArguments:
    """The arguments of the model that has these tensors, by open_clip's names.

    Raises:
        ConversionError: they are not a CLIP's.
        MissingConfigurationError: the number of heads cannot be read from a width.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        text_width, embed_dim = shapes["text_projection"]
        context_length, _ = shapes["positional_embedding"]
        vocab_size, _ = shapes["token_embedding.weight"]
        vision: dict[str, Any]
        if "visual.proj" in shapes:
            width, _, _, patch = shapes["visual.conv1.weight"]
            grid = grid_of(shapes["visual.positional_embedding"][0])
            layers = count_layers(shapes, r"visual\.transformer\.resblocks\.(\d+)\.")
            vision = {"vision_layers": layers, "vision_patch_size": patch, "image_resolution": patch * grid}
        else:
            width = shapes["visual.layer1.0.conv1.weight"][0]
            grid = grid_of(shapes["visual.attnpool.positional_embedding"][0])
            stages = [count_layers(shapes, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
            vision = {"vision_layers": stages, "image_resolution": 32 * grid}
    except (KeyError, ValueError, IndexError) as problem:
        raise ConversionError(f"the checkpoint is no CLIP: {problem} is missing or misshapen") from None
    return ClipArguments(
        embed_dim=embed_dim,
        vision_width=width,
        context_length=context_length,
        vocab_size=vocab_size,
        transformer_width=text_width,
        transformer_heads=heads_of(text_width, "text"),
        transformer_layers=count_layers(shapes, r"transformer\.resblocks\.(\d+)\."),
        **vision,
    )
