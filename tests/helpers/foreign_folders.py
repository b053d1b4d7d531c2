"""Folders of open_clip and transformers, as small as a test needs, without those programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig

RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64, "patch_size": None}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}


def open_clip_config(vision: dict[str, Any] = VIT, **model: Any) -> dict[str, Any]:
    """The contents of an `open_clip_config.json`."""
    text = TEXT | model.pop("text_cfg", {})
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "squash"}
    return {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text} | model,
        "preprocess_cfg": preprocess,
    }


def tiny_clip(kind: str = "vit", seed: int = 0) -> CloobModel:
    """The model that `open_clip_config` describes, with random norms and biases and a temperature of its own."""
    vision: dict[str, Any] = {"kind": kind, "image_size": 32, "width": 32, "layers": 2, "heads": 4, "patch_size": 8}
    if kind == "resnet":
        vision = {"kind": kind, "image_size": 64, "width": 8, "layers": [1, 2, 1, 1]}
    text = TEXT | {"activation": "quick_gelu"}
    described = {"embed_dim": 24, "vision": vision | {"activation": "quick_gelu"}, "text": text, "inv_tau": 87.5}
    model = build(ModelConfig.model_validate(described), seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():  # zeros and ones would hide a wrong norm or bias
        if name.endswith(("bias", "bn3.weight")) or "ln_" in name:
            parameter.normal_(float("weight" in name), 0.2, generator=generator)
    return model


def save_open_clip(folder: Path, model: CloobModel, config: dict[str, Any], file: str | None = None) -> Path:
    """Write the model as open_clip does; `file` is "open_clip_pytorch_model.bin" for its older form."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    name = file or "open_clip_model.safetensors"
    if name.endswith(".bin"):
        torch.save(model.state_dict(), folder / name)
    else:
        save_file(model.state_dict(), folder / name)
    return folder
