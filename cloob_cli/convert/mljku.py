"""Checkpoints of ml-jku/cloob (the CLOOB paper): a torch file whose `state_dict` holds CLIP's tensors.

Names begin with `module.`, the text tower's with `module.transformer.`; the temperature is `logit_inv_tau`. All were
trained with QuickGELU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cloob_cli.convert.openai_clip_arguments import ClipArguments, arguments_of, described_by
from cloob_cli.convert.torch_file import plain_tensor
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.errors import ConversionError
from cloob_cli.strict_model import nearest, parse

HOPFIELD = "logit_scale_hopfield"
_RENAMED = {"logit_inv_tau": "logit_scale"}


def recognizes(checkpoint: Any) -> bool:
    """True where the contents of a torch file look like this program's."""
    tensors = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    return isinstance(tensors, Mapping) and any(str(name).endswith("logit_inv_tau") for name in tensors)


def convert(
    checkpoint: Any, upstream: dict[str, Any] | None, architecture: str | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Our configuration and tensors, and the names of the source's tensors that have no place in them.

    Args:
        upstream: the checkpoint's own configuration, if it is known.
        architecture: its open_clip name otherwise, like "RN50"; without either the shapes decide.

    Raises:
        ConversionError: the checkpoint does not have this layout.
    """
    source = _state(checkpoint)
    ignored = [name for name in source if _bare(name) == HOPFIELD]
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.items():
        if name in ignored:
            continue
        target = _target(name)
        if target in tensors:
            raise ConversionError(f"two tensors of the checkpoint stand for '{target}'")
        tensors[target] = plain_tensor(name, tensor)
    if upstream is not None:
        description = described_by(parse(ClipArguments, upstream, "the configuration", ConversionError))
    elif architecture is not None:
        description = _named(architecture)
    else:
        description = described_by(arguments_of(tensors))
    inv_tau = _exponential(tensors.get("logit_scale"))
    if inv_tau is None:
        raise ConversionError("the checkpoint lacks the tensor 'logit_inv_tau'")
    config = parse(
        ModelConfig,
        description
        | {
            "inv_tau": inv_tau,
            "scale_hopfield": next((_exponential(plain_tensor(name, source[name])) for name in ignored), None),
            "source": {"format": "mljku"} | _provenance(checkpoint),
        },
        "the configuration",
        ConversionError,
    )
    return config, tensors, ignored


def _state(checkpoint: Any) -> dict[str, Any]:
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ConversionError("the checkpoint holds no state_dict", "is it in the form of ml-jku/cloob?")
    return dict(state)


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _target(name: str) -> str:
    bare = _bare(name)
    if bare.startswith("transformer.") and not bare.startswith("transformer.resblocks."):
        bare = bare.removeprefix("transformer.")  # the text tower is a module of its own there
    return _RENAMED.get(bare, bare)


def _named(architecture: str) -> dict[str, Any]:
    base = architecture.removesuffix("-quickgelu").replace("/", "-")
    known = {name.removesuffix("-quickgelu") for name in ARCHITECTURES}
    if base not in known:
        near = nearest(base, known)
        raise ConversionError(
            f"unknown architecture {architecture!r}", f"did you mean {near!r}?" if near else f"known: {sorted(known)}"
        )
    return ARCHITECTURES[f"{base}-quickgelu"]


def _exponential(logarithm: Tensor | None) -> float | None:
    if logarithm is None:
        return None
    if logarithm.numel() != 1 or not math.isfinite(value := math.exp(min(float(logarithm), 100.0))):
        raise ConversionError("a temperature of the checkpoint is not one finite number")
    return float(f"{value:.6g}")  # float32 keeps no more digits, and 30 should read as 30


def _provenance(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {key: checkpoint[key] for key in ("epoch", "name") if isinstance(checkpoint.get(key), str | int)}
