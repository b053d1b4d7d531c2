"""Exported models give the same embeddings in the programs that they were exported for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from margins import close
from PIL import Image
from safetensors.torch import load_file

from cloob_cli.checkpoint.behavior_fingerprint import fixed_images
from cloob_cli.checkpoint.folder import open_model, save_model
from cloob_cli.convert import convert_checkpoint
from cloob_cli.core.model import build
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.data.preprocess import open_image
from cloob_cli.data.tokenizer import Tokenizer, clean, clip_tokenizer, train_bpe
from cloob_cli.errors import NotExportableError, UsageError
from cloob_cli.export import export_model
from cloob_cli.export.open_clip import open_clip_config

HELPERS = Path(__file__).parents[1] / "helpers"
GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = ["a red bicycle", "two cats on a roof", "the sea at night", "bicycles under the roof at night"]
TEXTS = ["a red bicycle", "Two CATS &amp; the  sea", "the sea at night " * 20, "under"]
TEXTS += ["!", "wow! two!!! cats!", "‘ΟΔΟΣ’", ""]
VISIONS = {
    "vit": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "heads": 3},
    "resnet": {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 2, 1, 1]},
}
TEXT = {"context_length": 16, "width": 32, "layers": 2, "heads": 2}
# What open_clip can express, one of each: activations, norms, projections, preprocessing, tokenizers.
EXPORTABLE: dict[str, dict[str, Any]] = {
    "vit_quick_gelu": {"vision": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}},
    "vit_tanh": {"vision": {"activation": "gelu_tanh", "norm_epsilon": 1e-3}, "text": {"norm_epsilon": 1e-2}},
    "vit_no_pre_norm": {"vision": {"norm_pre": False, "mlp_ratio": 2.0}, "preprocess": {"resize": "squash"}},
    "vit_not_causal": {"text": {"causal": False, "pooling": "first", "projection_bias": True}},
    "vit_own_words": {"tokenizer": {"kind": "bpe"}, "preprocess": {"interpolation": "bilinear", "mean": (0, 0, 0)}},
    "resnet": {"vision": "resnet"},
    "resnet_quick_gelu": {"vision": "resnet", "text": {"activation": "quick_gelu"}},
}  # fmt: skip


def save(folder: Path, changes: dict[str, Any]) -> Path:
    own = changes.get("tokenizer", {}).get("kind") == "bpe"
    tokenizer: Tokenizer = train_bpe(CAPTIONS, 560, context_length=16) if own else clip_tokenizer(16)
    vision = VISIONS["resnet"] if changes.get("vision") == "resnet" else VISIONS["vit"] | changes.get("vision", {})
    text = TEXT | {"vocab_size": tokenizer.vocab_size} | changes.get("text", {})
    rest = {key: value for key, value in changes.items() if key not in ("vision", "text")}
    config = ModelConfig.model_validate({"name": "tiny", "embed_dim": 24, "vision": vision, "text": text} | rest)
    model = build(config, seed=0)
    for name, parameter in model.named_parameters():  # zeros and ones would hide a wrong norm or bias
        if name.endswith(("bias", "bn3.weight")) or "ln_" in name:
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    save_model(folder, model, tokenizer, card_text="# tiny\n")
    return folder


def ours(folder: Path) -> dict[str, torch.Tensor]:
    model = open_model(folder, "cpu", torch.float32)
    pixels = torch.stack([model.preprocess(image) for image in fixed_images()])
    tokens = model.tokenize(TEXTS)
    return {
        "pixels": pixels,
        "tokens": tokens,
        "images": model.encode_image(pixels),
        "texts": model.encode_text(tokens),
        "inv_tau": model.inv_tau.reshape(1),
    }


OPEN_CLIP = """
import json, sys, torch, open_clip
from safetensors.torch import save_file
given = json.loads(sys.stdin.read())
from cloob_cli.checkpoint.behavior_fingerprint import fixed_images
for folder in sys.argv[1:]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(given)
    model.eval()
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in fixed_images()])
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
    found = {"pixels": pixels, "tokens": tokens, "images": images, "texts": texts}
    found["inv_tau"] = model.logit_scale.exp().reshape(1)
    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, f"{folder}/found.safetensors")
"""


def in_open_clip(code: str, *folders: Path, texts: list[str] = TEXTS) -> None:
    """Run `code` on exported folders in a process of its own, with the real open_clip; it writes into each."""
    paths = [str(HELPERS / "torchvision_stand_in"), str(HELPERS.parents[1])]
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)],
        input=json.dumps(texts),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]


needs_open_clip = pytest.mark.skipif(
    find_spec("open_clip") is None, reason="needs `pip install --no-deps open_clip_torch` and `pip install regex tqdm`"
)


def to_the_end(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens with -1 for whatever follows the end token, the highest: no causal tower sees that."""
    after = torch.arange(tokens.shape[1]) > tokens.argmax(-1, keepdim=True)
    return tokens.masked_fill(after, -1)


def every_printable_character() -> list[str]:
    """Each alone, inside a word, and before an exclamation mark, which is number 0 of a trained vocabulary."""
    return [f"{sign} a{sign}b {sign}!" for sign in map(chr, range(sys.maxunicode + 1)) if sign.isprintable()]


def characters_of_all_kinds() -> list[str]:
    """The same with one in 64 of those that have no case and no compatibility form (ideographs): a sixth of all."""
    rare = [
        text for text in every_printable_character() if unicodedata.category(text[0]) == "Lo" and text[0] >= "\u3400"
    ]
    return sorted({*every_printable_character()} - {*rare} | {*rare[::64]})


@pytest.mark.numeric
@needs_open_clip
def test_open_clip_gives_the_same_embeddings(tmp_path: Path) -> None:
    models = {name: save(tmp_path / name, changes) for name, changes in EXPORTABLE.items()}
    for name, folder in models.items():
        export_model(folder, "open_clip", tmp_path / f"{name}.open_clip")
    in_open_clip(OPEN_CLIP, *(tmp_path / f"{name}.open_clip" for name in models))
    for name, folder in models.items():
        found, expected = load_file(tmp_path / f"{name}.open_clip/found.safetensors"), ours(folder)
        assert torch.equal(*(to_the_end(tokens) for tokens in (found["tokens"], expected["tokens"]))), name
        for key in ("pixels", "images", "texts", "inv_tau"):
            close(found[key], expected[key], "unit rows in float32 through a dozen layers", atol=1e-5)


TOKENS = """
import json, sys, open_clip
from safetensors.torch import save_file
texts = json.loads(sys.stdin.read())
for folder in sys.argv[1:]:
    save_file({"tokens": open_clip.get_tokenizer(f"local-dir:{folder}")(texts)}, f"{folder}/found.safetensors")
"""


@needs_open_clip
@pytest.mark.parametrize("name", ["vit_own_words", "vit_tanh"])
def test_every_printable_character_in_open_clip(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE[name])
    export_model(folder, "open_clip", tmp_path / "out")
    texts = every_printable_character()
    in_open_clip(TOKENS, tmp_path / "out", texts=texts)
    found, expected = load_file(tmp_path / "out/found.safetensors")["tokens"], open_model(folder, "cpu").tokenize(texts)
    wrong = (to_the_end(found) != to_the_end(expected)).any(-1).nonzero().flatten().tolist()
    assert not wrong, [texts[row] for row in wrong[:20]]


def test_all_kinds_of_characters_as_open_clip_tokenizes_a_trained_vocabulary(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(tmp_path / "model", EXPORTABLE["vit_own_words"])
    export_model(folder, "open_clip", tmp_path / "out")
    described = json.loads((tmp_path / "out/open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    assert described["text_cfg"]["tokenizer_kwargs"] == {"clean": "lower"}  # open_clip's name for what `clean` does
    texts = characters_of_all_kinds()
    # open_clip's HFTokenizer.__call__
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(
        [clean(text) for text in texts], return_tensors="pt", max_length=16, padding="max_length", truncation=True
    ).input_ids
    expected = open_model(folder, "cpu").tokenize(texts)
    wrong = (to_the_end(tokens) != to_the_end(expected)).any(-1).nonzero().flatten().tolist()
    assert not wrong, [texts[row] for row in wrong[:20]]


README_IN_OPEN_CLIP = """
import re, sys
from pathlib import Path
from safetensors.torch import save_file
for folder in sys.argv[1:]:
    readme = Path(folder, "README.md").read_text(encoding="utf-8").replace("THIS_FOLDER", folder)
    code = re.findall("```python\\n(.*?)```", readme, re.S)[-1]
    images = sorted(Path(folder).parent.glob("*.png"))
    for image in images:
        names = {}
        exec(code.replace("image.png", str(image)), names)
        found = {"image": names["image_embeddings"].detach(), "text": names["text_embeddings"].detach()}
        save_file(found, image.with_suffix(".safetensors"))
"""


def unusual_images(folder: Path) -> list[Path]:
    """A transparent, a palette, and a rotated image, all saved as PNG."""
    image = fixed_images()[0]
    transparent = image.copy()
    transparent.putalpha(image.convert("L").point(lambda value: 255 * (value > 90)))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    transparent.save(folder / "transparent.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(folder / "palette.png")
    image.save(folder / "rotated.png", exif=rotated)
    return [folder / f"{name}.png" for name in ("transparent", "palette", "rotated")]


@pytest.mark.numeric
@needs_open_clip
def test_the_readme_s_own_lines_in_open_clip(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["vit_own_words"])
    images = unusual_images(tmp_path)
    export_model(folder, "open_clip", tmp_path / "out")
    in_open_clip(README_IN_OPEN_CLIP, tmp_path / "out")
    model = open_model(folder, "cpu", torch.float32)
    for path in images:
        found = load_file(path.with_suffix(".safetensors"))
        image = model.encode_image(model.preprocess(open_image(path))[None])
        reason = "unit rows in float32 through a dozen layers"
        close(found["image"], image, reason, atol=1e-5)
        close(found["text"], model.encode_text(model.tokenize(["a cat", "a dog"])), reason, atol=1e-5)


def test_the_readme_names_the_program_that_opens_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["resnet"])
    (folder / "README.md").write_text("---\nlibrary_name: cloob\nlicense: mit\n---\n\n# tiny\n", encoding="utf-8")
    export_model(folder, "open_clip", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: open_clip\nlicense: mit\n---\n\n# tiny\n\n## In open_clip\n")


def test_the_weights_are_copied_under_their_names(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["vit_tanh"])
    export_model(folder, "open_clip", tmp_path / "out")
    exported, own = load_file(tmp_path / "out/open_clip_model.safetensors"), load_file(folder / "model.safetensors")
    assert exported.keys() == own.keys()
    assert all(torch.equal(exported[name], own[name]) for name in own)


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-16-quickgelu", "ViT-B-32"])
def test_known_architectures_are_described_as_open_clip_describes_them(name: str) -> None:
    described = open_clip_config(ModelConfig.model_validate(ARCHITECTURES[name]))["model_cfg"]
    # open_clip's model_configs/*.json of these names
    vision = {"image_size": 224, "layers": [3, 4, 6, 3] if "RN" in name else 12, "width": 64 if "RN" in name else 768}
    assert described["embed_dim"] == (1024 if "RN" in name else 512)
    assert described["quick_gelu"] == name.endswith("quickgelu")
    assert vision.items() <= described["vision_cfg"].items()
    assert described["vision_cfg"]["head_width"] == 64
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    assert text.items() <= described["text_cfg"].items()
    assert "hf_tokenizer_name" not in described["text_cfg"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": {"projection_bias": True}}, "bias in the image projection"),
        ({"vision": {"patch_bias": True}}, "bias in the patch embedding"),
        ({"vision": {"stem": "conv"}}, "a stem of convolutions"),
        ({"vision": {"norm_post": False}}, "no norm after the image tower"),
        ({"vision": {"activation": "quick_gelu"}}, "two activations"),
        ({"text": {"causal": False, "padding": "queries"}}, "masks its padding"),
        ({"text": {"post_norm": True}}, "norms after the text tower's layers"),
        ({"text": {"norm_embedding": True}}, "norm of the text's embeddings"),
        ({"text": {"norm_final": False}}, "no norm after the text tower"),
        ({"tokenizer": {"truncation": "mljku"}}, "cutting of texts"),
        ({"text": {"causal": False}, "tokenizer": {"kind": "bpe"}}, "sees its padding"),
        ({"text": {"causal": False}, "tokenizer": {"pad_id": 1}}, "padding that is not 0"),
    ],
)
def test_what_open_clip_cannot_express(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", changes)
    with pytest.raises(NotExportableError, match=reason) as raised:
        export_model(folder, "open_clip", tmp_path / "out")
    assert "onnx" in str(raised.value.hint)
    assert not (tmp_path / "out").exists()


def test_crowsonkb_s_models_are_not_open_clip_s(tmp_path: Path) -> None:
    converted = convert_checkpoint(GOLDEN / "crowsonkb")
    with pytest.raises(NotExportableError):
        open_clip_config(converted.config)


def test_an_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'coreml'"):
        export_model(tmp_path, "coreml", tmp_path / "out")


CROWSONKB = {
    "vision": {"norm_pre": False, "norm_post": False, "projection_bias": True, "activation": "gelu_tanh"},
    "text": {"causal": False, "pooling": "first", "padding": "queries", "norm_final": False, "projection_bias": True},
}
ROBERTA = {
    "vision": {"norm_pre": False, "patch_bias": True},
    "text": {"causal": False, "pooling": "first", "padding": "keys", "pad_id": 0, "post_norm": True,
             "norm_embedding": True, "norm_final": False},
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize(
    "changes",
    [
        EXPORTABLE["vit_own_words"],
        pytest.param(EXPORTABLE["resnet"], marks=pytest.mark.slow),
        pytest.param(CROWSONKB, marks=pytest.mark.slow),
        pytest.param(ROBERTA, marks=pytest.mark.slow),
    ],
    ids=["clip", "resnet", "crowsonkb", "roberta"],
)
def test_onnx_gives_the_same_embeddings_for_any_batch(changes: dict[str, Any], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    folder = save(tmp_path / "model", changes)
    export_model(folder, "onnx", tmp_path / "out")
    expected = ours(folder)
    for tower, name, result in (("image", "pixels", "images"), ("text", "tokens", "texts")):
        session = onnxruntime.InferenceSession(tmp_path / f"out/{tower}.onnx")
        for batch in (1, 3):
            found = session.run(["embeddings"], {name: expected[name][:batch].numpy()})[0]
            right = expected[result][:batch]
            close(torch.from_numpy(found), right, "unit rows in float32 through a dozen layers", atol=1e-5)
    assert json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))["name"] == "tiny"
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_the_exported_folder_holds_no_fingerprint_of_its_source(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", EXPORTABLE["resnet"])
    export_model(folder, "open_clip", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"open_clip_config.json", "open_clip_model.safetensors", "README.md"}
