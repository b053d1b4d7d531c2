"""The fingerprint holds for the same model and for nothing that computes something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cloob_cli.checkpoint.behavior_fingerprint import FINGERPRINT_FILE, TEXTS, fixed_images
from cloob_cli.checkpoint.folder import CONFIG_KEY, check_fingerprint, open_model, save_model
from cloob_cli.core.model import build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.data.tokenizer import clip_tokenizer, train_bpe
from cloob_cli.errors import ModelFolderError, VerificationError

DESCRIPTION = {
    "embed_dim": 32,
    "vision": {"kind": "vit", "image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "activation": "gelu_tanh"},
    "text": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, build(ModelConfig.model_validate(DESCRIPTION), seed=0), clip_tokenizer(16), card_text="# tiny\n")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(saved, tmp_path / "model")


def change(folder: Path, section: str, key: str, value: object) -> None:
    """Change the configuration in both of its places, as a wrong converter would have written it."""
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described.setdefault(section, {})[key] = value
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={CONFIG_KEY: json.dumps(described)})


def test_it_holds_for_the_model_it_was_stored_with(folder: Path) -> None:
    assert "embeddings as stored" in check_fingerprint(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_holds_in_every_number_format(folder: Path, dtype: torch.dtype) -> None:
    check_fingerprint(folder, dtype=dtype)


def test_it_holds_for_weights_stored_in_float16(tmp_path: Path) -> None:
    model = build(ModelConfig.model_validate(DESCRIPTION), seed=0)
    save_model(tmp_path / "model", model, clip_tokenizer(16), card_text="# tiny\n", dtype=torch.float16)
    check_fingerprint(tmp_path / "model")


@pytest.mark.parametrize(
    ("section", "key", "value", "complaint"),
    [
        ("vision", "activation", "gelu", "image tower"),  # the nearest wrong thing
        ("vision", "activation", "quick_gelu", "image tower"),
        ("text", "activation", "gelu_tanh", "text tower"),
        ("vision", "norm_epsilon", 1e-3, "image tower"),
        ("text", "causal", False, "text tower"),
        ("text", "pooling", "first", "text tower"),
        ("preprocess", "mean", [0.5, 0.5, 0.5], "preprocessing"),
        ("preprocess", "std", [0.27, 0.26, 0.27577711], "preprocessing"),
        ("preprocess", "resize", "squash", "preprocessing"),
        ("preprocess", "interpolation", "bilinear", "preprocessing"),
        ("tokenizer", "lower_case", False, "tokenizer"),
        ("tokenizer", "pad_id", 1, "tokenizer"),
        ("tokenizer", "truncation", "mljku", "tokenizer"),
    ],
)
def test_a_wrong_configuration_is_caught(folder: Path, section: str, key: str, value: object, complaint: str) -> None:
    change(folder, section, key, value)
    with pytest.raises(VerificationError, match=complaint):
        check_fingerprint(folder)


def test_another_vocabulary_is_caught(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    del data["model"]["merges"][0]
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises((VerificationError, ModelFolderError), match="tokenizer"):
        check_fingerprint(folder)


@pytest.mark.parametrize("name", ["visual.conv1.weight", "transformer.resblocks.1.mlp.c_proj.bias"])
def test_a_changed_weight_is_caught(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    tensors[name].view(-1)[0] += 0.1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(VerificationError, match="tower"):
        check_fingerprint(folder)


def test_a_damaged_fingerprint_is_an_error(folder: Path) -> None:
    (folder / FINGERPRINT_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ModelFolderError, match="cannot be read"):
        check_fingerprint(folder)
    save_file({"tokens": torch.zeros(1)}, folder / FINGERPRINT_FILE)
    with pytest.raises(ModelFolderError, match="lacks image_embeddings, pixels, text_embeddings"):
        check_fingerprint(folder)


def test_a_recipe_s_own_vocabulary_has_a_fingerprint_too(tmp_path: Path) -> None:
    tokenizer = train_bpe(["a red bicycle", "two cats"], 540, context_length=16)
    described = DESCRIPTION | {"tokenizer": {"kind": "bpe"}}
    described["text"] = DESCRIPTION["text"] | {"vocab_size": tokenizer.vocab_size}
    save_model(tmp_path / "m", build(ModelConfig.model_validate(described), seed=0), tokenizer, card_text="")
    assert check_fingerprint(tmp_path / "m")


def test_the_inputs_reach_what_can_go_wrong() -> None:
    """Other shapes than a square, all channels different, and a text that must be cut."""
    images = fixed_images()
    assert len({image.size for image in images}) == 3
    assert all(image.mode == "RGB" for image in images)
    rows = clip_tokenizer(77)(TEXTS)
    assert (rows[:, -1] == 49407).any()
    assert (rows[:, -1] == 0).any()


def test_opening_ignores_the_fingerprint(folder: Path) -> None:
    (folder / FINGERPRINT_FILE).unlink()
    assert open_model(folder, "cpu").config.embed_dim == 32
