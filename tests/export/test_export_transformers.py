"""The folder that `zoo export --to transformers` writes, opened by transformers' own CLIPModel and CLIPProcessor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from margins import close
from PIL import Image
from safetensors.torch import load_file

from cloob_cli.checkpoint.folder import open_model, save_model
from cloob_cli.core.model import build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.data.preprocess import open_image
from cloob_cli.data.tokenizer import Tokenizer, clip_tokenizer, train_bpe
from cloob_cli.errors import NotExportableError
from cloob_cli.export import export_model

CAPTIONS = ["a red bicycle", "two cats on a roof", "the sea at night", "bicycles under the roof at night"]
TEXTS = [
    "a red bicycle",
    "Two CATS: the  sea",
    "the sea at night " * 20,
    "!",
    "it’s “wow!” two!!! cats!",
    "",
    "é 日本 12",
]
UNIT_ROWS = "unit rows in float32 through a dozen layers"
VISION = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "heads": 3}
RESNET = {"kind": "resnet", "width": 8, "layers": [1, 1, 1, 1], "heads": None, "patch_size": None}
TEXT = {"context_length": 16, "width": 32, "layers": 2, "heads": 2}
# What transformers' CLIPModel can express, one of each; every tower has an activation and an epsilon of its own there.
EXPORTABLE: dict[str, dict[str, Any]] = {
    "quick_gelu": {"vision": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}},
    "tanh": {"vision": {"activation": "gelu_tanh", "norm_epsilon": 1e-3}, "text": {"norm_epsilon": 1e-2}},
    "own_words": {"tokenizer": {"kind": "bpe"}, "preprocess": {"interpolation": "bilinear", "mean": (0, 0, 0)}},
    "squash": {"vision": {"mlp_ratio": 2.0}, "preprocess": {"resize": "squash"}, "inv_tau": 100.0},
}


def save(folder: Path, changes: dict[str, Any]) -> Path:
    own = changes.get("tokenizer", {}).get("kind") == "bpe"
    tokenizer: Tokenizer = train_bpe(CAPTIONS, 560, context_length=16) if own else clip_tokenizer(16)
    vision = VISION | changes.get("vision", {})
    text = TEXT | {"vocab_size": tokenizer.vocab_size} | changes.get("text", {})
    rest = {key: value for key, value in changes.items() if key not in ("vision", "text")}
    config = ModelConfig.model_validate({"name": "tiny", "embed_dim": 24, "vision": vision, "text": text} | rest)
    model = build(config, seed=0)
    for name, parameter in model.named_parameters():  # zeros and ones would hide a wrong norm or bias
        if name.endswith("bias") or "ln_" in name:
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    save_model(folder, model, tokenizer, card_text="---\nlibrary_name: cloob\n---\n\n# tiny\n")
    return folder


def opened(folder: Path) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    model, report = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report  # no tensor missing, left over, or of another shape
    return model, transformers.CLIPProcessor.from_pretrained(folder)


def prepare(folder: Path, path: Path) -> Image.Image:
    """An image as the exported README says."""
    code = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[-1]
    names: dict[str, Any] = {}
    exec(code.split("\nmodel =")[0], names)
    return names["prepare"](path)


def images(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.mark.numeric
@pytest.mark.parametrize("name", EXPORTABLE)
def test_transformers_gives_the_same_embeddings(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE[name])
    export_model(folder, "transformers", tmp_path / "out")
    model, processor = opened(tmp_path / "out")
    ours = open_model(folder, "cpu", torch.float32)
    # Ordinary and tiny ones, of which some end in the middle of a pixel when they are cropped.
    sizes = [(320, 240), (241, 320), (97, 131), (64, 64), (32, 33), (31, 32), (7, 5), (2, 3), (1, 1)]
    prepared = []
    for number, image in enumerate(images(sizes)):
        image.save(tmp_path / f"{number}.png")
        prepared.append(prepare(tmp_path / "out", tmp_path / f"{number}.png"))
    inputs = processor(text=TEXTS, images=prepared, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs)
    pixels = torch.stack([ours.preprocess(image) for image in images(sizes)])
    # Pixels are the same to the bit, but for their scaling.
    close(inputs["pixel_values"], pixels, "numbers of up to 2.6 in float32", atol=1e-5)
    close(found.image_embeds, ours.encode_image(pixels), UNIT_ROWS, atol=1e-5)
    close(found.text_embeds, ours.encode_text(ours.tokenize(TEXTS)), UNIT_ROWS, atol=1e-5)
    scores = ours.inv_tau * ours.encode_text(ours.tokenize(TEXTS)) @ ours.encode_image(pixels).T
    close(found.logits_per_text, scores, UNIT_ROWS, atol=1e-5 * float(ours.inv_tau))


@pytest.mark.numeric
def test_the_processor_alone_on_ordinary_and_tiny_images(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["quick_gelu"])
    export_model(folder, "transformers", tmp_path / "out")
    _, processor = opened(tmp_path / "out")
    ours = open_model(folder, "cpu", torch.float32)
    for image in images(
        [(320, 240), (160, 320), (96, 160), (64, 64), (16, 16), (4, 6), (1, 1)]
    ):  # an even rest to crop
        found = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        close(found, ours.preprocess(image), "resized with torchvision: 1 of 255 off, 0.015 after scaling", atol=0.031)


def test_every_printable_character_but_what_the_readme_names(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["own_words"])
    export_model(folder, "transformers", tmp_path / "out")
    _, processor = opened(tmp_path / "out")
    texts = [f"a{sign}b{sign}!" for sign in map(chr, range(0x3400)) if sign.isprintable()]
    found = processor(text=texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    expected = open_model(folder, "cpu").tokenize(texts)
    end = expected.max()
    after = torch.arange(16) > expected.argmax(-1, keepdim=True)
    wrong = (found != expected.masked_fill(after, end)).any(-1).nonzero().flatten().tolist()
    # Letters of two in one, which ftfy takes apart: Dutch ij, 'n, and the Croatian digraphs.
    assert {texts[row][1] for row in wrong} <= set("ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳ")


def test_transparency_palettes_and_rotation_as_the_readme_says(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["quick_gelu"])
    export_model(folder, "transformers", tmp_path / "out")
    [image] = images([(60, 40)])
    transparent = image.copy()
    transparent.putalpha(128)
    transparent.save(tmp_path / "transparent.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(tmp_path / "palette.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(tmp_path / "rotated.png", exif=rotated)
    ours = open_model(folder, "cpu", torch.float32)
    assert ours.preprocess is not None
    for name in ("transparent", "palette", "rotated"):
        found = np.array(prepare(tmp_path / "out", tmp_path / f"{name}.png"))
        assert np.array_equal(found, ours.preprocess.crop(open_image(tmp_path / f"{name}.png"))), name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": RESNET}, "a ResNet"),
        ({"vision": {"norm_pre": False}}, "no norm before the image tower"),
        ({"vision": {"norm_post": False}}, "no norm after the image tower"),
        ({"vision": {"projection_bias": True}}, "a bias in the image projection"),
        ({"text": {"projection_bias": True}}, "a bias in the text projection"),
        ({"text": {"causal": False}}, "not causal"),
        ({"text": {"pooling": "first"}}, "first token"),
        ({"text": {"post_norm": True}}, "norms after the text tower's layers"),
        ({"tokenizer": {"truncation": "mljku"}}, "cutting of texts"),
    ],
)
def test_what_transformers_cannot_express(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", changes)
    with pytest.raises(NotExportableError, match=reason) as raised:
        export_model(folder, "transformers", tmp_path / "out")
    assert "\n" not in raised.value.message
    assert "onnx" in str(raised.value.hint)
    assert not (tmp_path / "out").exists()


def test_every_weight_is_there_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["tanh"])
    export_model(folder, "transformers", tmp_path / "out")
    count = {name: sum(tensor.numel() for tensor in load_file(tmp_path / name / "model.safetensors").values())
             for name in ("model", "out")}  # fmt: skip
    assert count["out"] == count["model"]
