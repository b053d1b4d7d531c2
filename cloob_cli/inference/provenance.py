"""Metadata of Parquet files that say how the rows were made; all values are text."""

from __future__ import annotations

import json

from cloob_cli.core.model import CloobModel
from cloob_cli.inference.encoding import device_of
from cloob_cli.inference.output_files import MADE_BY, Command


def describe_images(
    command: Command, model: CloobModel, name: str, weights_sha256: str, *, fast_jpeg: bool, **further: str
) -> dict[str, str]:
    """Describe how rows were made of images: every option that changes numbers, so that files can be compared.

    Args:
        name: the name of the model.
        further: values that only this command has.
    """
    return {**_describe(command, model, name, weights_sha256), "fast_jpeg": json.dumps(fast_jpeg), **further}


def describe_texts(
    command: Command, model: CloobModel, name: str, weights_sha256: str, **further: str
) -> dict[str, str]:
    """Describe how rows were made of texts, in the same way."""
    context = {"context_length": model.config.text.context_length}
    tokenizer = json.dumps({**context, **model.config.tokenizer.model_dump(mode="json")})
    return {**_describe(command, model, name, weights_sha256), "tokenizer": tokenizer, **further}


def _describe(command: Command, model: CloobModel, name: str, weights_sha256: str) -> dict[str, str]:
    from cloob_cli.version import __version__

    config = model.config
    preprocessing = {"image_size": config.vision.image_size, **config.preprocess.model_dump(mode="json")}
    return {
        MADE_BY: f"cloob {command}",
        "version": __version__,
        "model": name,
        "weights_sha256": weights_sha256,
        "preprocessing": json.dumps(preprocessing),
        "precision": str(model.logit_scale.dtype).removeprefix("torch."),
        "device": device_of(model).type,
    }
