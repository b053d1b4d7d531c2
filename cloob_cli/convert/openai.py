"""OpenAI's own checkpoints (openai/CLIP): TorchScript archives, and state dicts of the same names.

Their tensors have our names already; the architecture is read from the shapes, as openai/CLIP itself does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cloob_cli.convert.open_clip import inverse_temperature, recognizes, with_our_names
from cloob_cli.convert.openai_clip_arguments import arguments_of, described_by
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.errors import ConversionError
from cloob_cli.strict_model import parse


def convert(
    checkpoint: Any, upstream: dict[str, Any] | None, architecture: str | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Our configuration and tensors, and the names of the source's tensors that have no place in them.

    Args:
        upstream: not used; the shapes say everything.
        architecture: not used.

    Raises:
        ConversionError: the checkpoint is no CLIP.
    """
    if not recognizes(checkpoint):
        raise ConversionError(
            "the checkpoint is no CLIP of OpenAI", "open_clip's and transformers' folders open as well"
        )
    tensors, ignored = with_our_names(checkpoint)
    config = parse(
        ModelConfig,
        described_by(arguments_of(tensors)) | {"inv_tau": inverse_temperature(tensors), "source": {"format": "openai"}},
        "the configuration",
        ConversionError,
    )
    return config, tensors, ignored
