"""Metadata of Parquet files that say how the rows were made; all values are text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cloob_cli.inference.output_paths import MADE_BY, Command

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel
    from cloob_cli.core.model_config import ModelConfig


def describe_images(
    command: Command, model: CloobModel, name: str, weights_sha256: str, *, exact: bool, **further: str
) -> dict[str, str]:
    """Describe how rows were made of images: every option that changes numbers, so that files can be compared.

    Args:
        name: the name of the model.
        further: values that only this command has.
    """
    model_part = describe_model(command, model.config, name, weights_sha256) | describe_computation(model)
    return {**model_part, "decoding": decoding(exact), **further}


def decoding(exact: bool) -> str:
    """The name of a way of decoding images."""
    return "exact" if exact else "scaled"


def with_decoding(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata of rows of images that name the decoding also where they are from before it had a name.

    `--fast-jpeg` of then had another rule, and so its rows are like none of today's.
    """
    if "decoding" in metadata or "fast_jpeg" not in metadata:
        return metadata
    return {**metadata, "decoding": "exact" if metadata["fast_jpeg"] == "false" else "reduced JPEG"}


def describe_texts(
    command: Command, model: CloobModel, name: str, weights_sha256: str, **further: str
) -> dict[str, str]:
    """Describe how rows were made of texts, in the same way."""
    context = {"context_length": model.config.text.context_length}
    tokenizer = json.dumps({**context, **model.config.tokenizer.model_dump(mode="json")})
    model_part = describe_model(command, model.config, name, weights_sha256) | describe_computation(model)
    return {**model_part, "tokenizer": tokenizer, **further}


def describe_model(command: Command, config: ModelConfig, name: str, weights_sha256: str) -> dict[str, str]:
    """Describe the model and its preprocessing, as far as that can be told without opening it."""
    from cloob_cli.version import __version__

    preprocessing = {"image_size": config.vision.image_size, **config.preprocess.model_dump(mode="json")}
    return {
        MADE_BY: f"cloob {command}",
        "version": __version__,
        "model": name,
        "weights_sha256": weights_sha256,
        "preprocessing": json.dumps(preprocessing),
    }


def describe_computation(model: CloobModel) -> dict[str, str]:
    """Describe the number format and the kind of device that an opened model computes in and on."""
    dtype, device = model.logit_scale.dtype, model.logit_scale.device
    return {"precision": str(dtype).removeprefix("torch."), "device": device.type}
