"""The folder of transformers' `CLIPModel` and `CLIPProcessor`: a vision transformer and a causal text tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.atomic_files import replacing_folder
from cloob_cli.checkpoint.folder import CONFIG_FILE, WEIGHTS_FILE, open_model
from cloob_cli.convert.transformers_names import to_transformers
from cloob_cli.export.parts import OPEN_RGB, not_of_clip, refuse, tokenizer_of, write_readme, write_tokenizer

if TYPE_CHECKING:
    from cloob_cli.core.model_config import ModelConfig, TextConfig, VisionConfig

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers

_USAGE = """
## In transformers

transformers' processor drops the alpha channel and ignores EXIF rotation. Where the long side of the resized image
minus {size} is odd, it also crops one pixel beside this model's own program. Images that `prepare` has opened give the
embeddings that this model was made for. Texts are not repaired there: broken characters, ligatures, full-width letters
and HTML's `&amp;` stay as they are.

```python
from PIL import Image, ImageOps
from transformers import CLIPModel, CLIPProcessor

{open_rgb}

def prepare(path):
    image = open_rgb(path)
{crop}

model = CLIPModel.from_pretrained("THIS_FOLDER")
processor = CLIPProcessor.from_pretrained("THIS_FOLDER")
inputs = processor(
    text=["a cat", "a dog"], images=[prepare("image.png")], padding=True, truncation=True, return_tensors="pt"
)
outputs = model(**inputs)
image_embeddings, text_embeddings = outputs.image_embeds, outputs.text_embeds
```
"""

_CROP = """\
    shortest = min(image.size)
    resized = [{size} if side == shortest else int({size} * side / shortest) for side in image.size]
    left, top = [round((side - {size}) / 2) for side in resized]
    image = image.resize(resized, Image.Resampling.{filter})
    return image.crop((left, top, left + {size}, top + {size}))"""
_SQUASH = "    return image.resize(({size}, {size}), Image.Resampling.{filter})"


def export_transformers(folder: Path, output: Path) -> None:
    """Write the folder.

    Raises:
        NotExportableError: transformers' CLIPModel cannot compute what this model does.
    """
    import torch
    from safetensors.torch import save_file

    model = open_model(folder, "cpu", torch.float32)
    tokenizer = tokenizer_of(model)
    start, end = tokenizer([""])[0, :2].tolist()
    described = transformers_config(model.config, start, end)
    with replacing_folder(output) as temporary:
        write_tokenizer(tokenizer, model.config, temporary, cleaned_before=False)
        _write_json(temporary / CONFIG_FILE, described)
        _write_json(temporary / "preprocessor_config.json", _preprocessor(model.config))
        save_file(to_transformers(model.state_dict()), temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        write_readme(folder, temporary, "transformers", _usage(model.config))


def transformers_config(config: ModelConfig, start: int, end: int) -> dict[str, Any]:
    """The contents of `config.json`.

    Args:
        start: the id of the token that begins a text.
        end: the id of the token that ends a text, at which it is read.

    Raises:
        NotExportableError: transformers' CLIPModel cannot compute what this model does.
    """
    resnet = config.vision.kind == "resnet"
    refuse(
        "transformers' CLIPModel",
        {
            "a ResNet": resnet,
            "no norm before the image tower": not resnet and not config.vision.norm_pre,
            "no norm after the image tower": not resnet and not config.vision.norm_post,
            "a text tower that is not causal": not config.text.causal,
            "texts read at their first token": config.text.pooling != "end",
            "a bias in the text projection": config.text.projection_bias,
            **not_of_clip(config),
        },
    )
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "dtype": "float32",
        "projection_dim": config.embed_dim,
        "vision_config": _vision(config.vision, config.embed_dim),
        "text_config": _text(config.text, config.embed_dim)
        | {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end},
    }


def _vision(vision: VisionConfig, embed_dim: int) -> dict[str, Any]:
    return _tower(vision, embed_dim) | {
        "model_type": "clip_vision_model",
        "num_attention_heads": vision.head_count,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }


def _text(text: TextConfig, embed_dim: int) -> dict[str, Any]:
    return _tower(text, embed_dim) | {
        "model_type": "clip_text_model",
        "num_attention_heads": text.heads,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
    }


def _tower(tower: VisionConfig | TextConfig, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": round(tower.width * tower.mlp_ratio),
        "num_hidden_layers": tower.layers,
        "hidden_act": _ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.norm_epsilon,
        "projection_dim": embed_dim,
    }


def _preprocessor(config: ModelConfig) -> dict[str, Any]:
    size, preprocess = config.vision.image_size, config.preprocess
    square = {"height": size, "width": size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if preprocess.resize == "squash" else {"shortest_edge": size},
        "resample": _RESAMPLING[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _usage(config: ModelConfig) -> str:
    size, preprocess = config.vision.image_size, config.preprocess
    crop = _SQUASH if preprocess.resize == "squash" else _CROP
    crop = crop.format(size=size, filter=preprocess.interpolation.upper())
    return _USAGE.format(size=size, open_rgb=OPEN_RGB, crop=crop)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
