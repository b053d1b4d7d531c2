"""open_clip's folder: what `open_clip.create_model_and_transforms("local-dir:DIR")` opens.

Tensors already have open_clip's names, so the weights are copied; only the configuration is written anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.atomic_files import replacing_folder
from cloob_cli.checkpoint.folder import open_model
from cloob_cli.export.parts import (
    OPEN_RGB,
    foreign_padding,
    not_of_clip,
    refuse,
    tokenizer_of,
    write_readme,
    write_tokenizer,
)

if TYPE_CHECKING:
    from cloob_cli.core.model_config import ModelConfig, TextConfig, VisionConfig

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

_USAGE = """
## In open_clip

open_clip's own preprocessing drops the alpha channel, ignores EXIF rotation, and resizes palette images before it
converts them. Images opened by `open_rgb` give the embeddings that this model was made for.

```python
import open_clip
from PIL import Image, ImageOps

{open_rgb}

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:THIS_FOLDER")
model.eval()
tokenizer = open_clip.get_tokenizer("local-dir:THIS_FOLDER")
image_embeddings = model.encode_image(preprocess(open_rgb("image.png"))[None], normalize=True)
text_embeddings = model.encode_text(tokenizer(["a cat", "a dog"]), normalize=True)
```
"""


def export_open_clip(folder: Path, output: Path) -> None:
    """Write the folder.

    Raises:
        NotExportableError: open_clip's CLIP class cannot compute what this model does.
    """
    import torch
    from safetensors.torch import save_file

    model = open_model(folder, "cpu", torch.float32)
    described = open_clip_config(model.config)
    with replacing_folder(output) as temporary:
        text = json.dumps(described, indent=2)
        (temporary / _CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(model.state_dict(), temporary / _WEIGHTS, metadata={"format": "pt"})
        if model.config.tokenizer.kind == "bpe":
            write_tokenizer(tokenizer_of(model), model.config, temporary, cleaned_before=True)
        write_readme(folder, temporary, "open_clip", _USAGE.format(open_rgb=OPEN_RGB))


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of `open_clip_config.json`.

    Raises:
        NotExportableError: open_clip's CLIP class cannot compute what this model does.
    """
    quick_gelu = "quick_gelu" in _activations(config)
    refuse(
        "open_clip",
        {
            "two activations, one of them QuickGELU": quick_gelu and len(_activations(config)) > 1,
            "no norm after the image tower": config.vision.kind == "vit" and not config.vision.norm_post,
            **not_of_clip(config),
            **foreign_padding(config),
        },
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
    return {
        # Any name says "the tokenizer of transformers in this folder".
        "hf_tokenizer_name": config.name or "tokenizer",
        # open_clip then cleans texts as CLIP does and as this program does, lower case included.
        "tokenizer_kwargs": {"clean": "lower" if config.tokenizer.lower_case else "whitespace"},
    }
