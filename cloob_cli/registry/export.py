"""Models in the form of other programs: open_clip's folder, and ONNX files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.errors import NotExportableError, UsageError
from cloob_cli.files import replacing_folder
from cloob_cli.registry.store import README_FILE, TOKENIZER_FILE, open_model

if TYPE_CHECKING:
    from cloob_cli.core.config import ModelConfig, TextConfig, VisionConfig

TARGETS = ("open_clip", "onnx")
_OPEN_CLIP_CONFIG, _OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_CLIP_VOCABULARY = 49408


def export_model(folder: Path, to: str, output: Path) -> None:
    """Write the model in `folder` in the form of another program.

    Args:
        to: one of `TARGETS`.
        output: the folder to write; it appears only when everything is in it.

    Raises:
        NotExportableError: the target has no such architecture.
        MissingExtraError: "onnx" without the extra `onnx`.
        UsageError: no such target.
    """
    if to == "open_clip":
        _export_open_clip(Path(folder), Path(output))
    elif to == "onnx":
        from cloob_cli.registry.export_onnx import export_onnx

        export_onnx(Path(folder), Path(output))
    else:
        raise UsageError(f"cannot export to {to!r}", f"known: {', '.join(TARGETS)}")


def _export_open_clip(folder: Path, output: Path) -> None:
    """The folder that `open_clip.create_model_and_transforms("local-dir:DIR")` opens."""
    import torch
    from safetensors.torch import save_file

    model = open_model(folder, "cpu", torch.float32)
    described = open_clip_config(model.config)
    with replacing_folder(output) as temporary:
        text = json.dumps(described, indent=2)
        (temporary / _OPEN_CLIP_CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(model.state_dict(), temporary / _OPEN_CLIP_WEIGHTS, metadata={"format": "pt"})
        if model.config.tokenizer.kind == "bpe":
            _copy_tokenizer(folder, model.config, temporary)
        if (folder / README_FILE).is_file():
            shutil.copyfile(folder / README_FILE, temporary / README_FILE)


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of `open_clip_config.json`.

    Raises:
        NotExportableError: open_clip's CLIP class cannot compute what this model does.
    """
    quick_gelu = "quick_gelu" in _activations(config)
    _refuse(
        {
            "two activations, one of them QuickGELU": quick_gelu and len(_activations(config)) > 1,
            "no norm after the image tower": config.vision.kind == "vit" and not config.vision.norm_post,
            "a bias in the image projection": config.vision.projection_bias,
            "a bias in the patch embedding": config.vision.patch_bias,
            "a stem of convolutions before a vision transformer": config.vision.stem == "conv",
            "a text tower that masks its padding": config.text.padding != "ignored",
            "norms after the text tower's layers": config.text.post_norm,
            "a norm of the text's embeddings": config.text.norm_embedding,
            "no norm after the text tower": not config.text.norm_final,
            "a tokenizer of its own kind": config.tokenizer.kind not in ("clip", "bpe"),
            "padding or cutting of texts that is not open_clip's": (
                config.tokenizer.pad_id != 0 or config.tokenizer.truncation != "end"
            ),
            "a text tower with fewer entries than its tokenizer": (
                config.tokenizer.kind == "clip" and config.text.vocab_size != _CLIP_VOCABULARY
            ),
        }
    )
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": quick_gelu,
            "vision_cfg": _vision(config.vision),
            "text_cfg": _text(config.text) | _tokenizer(config),
        },
        "preprocess_cfg": {
            "mean": list(config.preprocess.mean),
            "std": list(config.preprocess.std),
            "interpolation": config.preprocess.interpolation,
            "resize_mode": config.preprocess.resize,
        },
    }


def _refuse(reasons: dict[str, bool]) -> None:
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise NotExportableError(
            f"open_clip has no architecture with {'; '.join(found)}", "`--to onnx` can express every model"
        )


def _activations(config: ModelConfig) -> set[str]:
    image = {config.vision.activation} if config.vision.kind == "vit" else set()  # a ResNet has ReLU
    return image | {config.text.activation}


def _vision(vision: VisionConfig) -> dict[str, Any]:
    channels = vision.width * 32 if vision.kind == "resnet" else vision.width
    described: dict[str, Any] = {
        "image_size": vision.image_size,
        "layers": vision.layers,
        "width": vision.width,
        "head_width": channels // vision.head_count,
    }
    if vision.kind == "vit":
        described |= {"patch_size": vision.patch_size, "mlp_ratio": vision.mlp_ratio, "no_ln_pre": not vision.norm_pre}
        described |= _layers(vision)
    return described


def _text(text: TextConfig) -> dict[str, Any]:
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": text.mlp_ratio,
        "no_causal_mask": not text.causal,
        "pool_type": "argmax" if text.pooling == "end" else "first",
        "proj_bias": text.projection_bias,
        **_layers(text),
    }


def _layers(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    described: dict[str, Any] = {"norm_kwargs": {"eps": tower.norm_epsilon}}
    if tower.activation == "gelu_tanh":
        described["act_kwargs"] = {"approximate": "tanh"}
    return described


def _tokenizer(config: ModelConfig) -> dict[str, Any]:
    if config.tokenizer.kind == "clip":
        return {}  # open_clip's own
    # Any name says "the tokenizer of transformers in this folder".
    return {"hf_tokenizer_name": config.name or "tokenizer"}


def _copy_tokenizer(folder: Path, config: ModelConfig, target: Path) -> None:
    shutil.copyfile(folder / TOKENIZER_FILE, target / TOKENIZER_FILE)
    names = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))["model"]["vocab"]
    pad = next(token for token, number in names.items() if number == config.tokenizer.pad_id)
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": config.tokenizer.start_token,
        "eos_token": config.tokenizer.end_token,
        "pad_token": pad,
        "model_max_length": config.text.context_length,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
