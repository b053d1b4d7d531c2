"""Golden checkpoints of both programs through the converter, and checkpoints that are not what they claim."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from margins import close
from safetensors.torch import load_file

import cloob_cli
from cloob_cli.checkpoint.folder import save_model
from cloob_cli.convert import convert_checkpoint
from cloob_cli.convert.haiku_pickle import read_haiku_pickle
from cloob_cli.core.model import unit_norm
from cloob_cli.errors import ConversionError

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("mljku_rn", "mljku_vit", "crowsonkb")
CHECKPOINTS = {"mljku_rn": "checkpoint.pt", "mljku_vit": "checkpoint.pt", "crowsonkb": "checkpoint.pkl"}


@pytest.mark.numeric
@pytest.mark.parametrize("name", NAMES)
def test_golden_embeddings_through_convert_save_and_load(name: str, tmp_path: Path) -> None:
    converted = convert_checkpoint(GOLDEN / name / CHECKPOINTS[name], config=GOLDEN / name / "config.json", name=name)
    save_model(tmp_path / "model", converted.model, converted.tokenizer, card_text="")
    model = cloob_cli.load(str(tmp_path / "model"), device="cpu")
    expected = load_file(GOLDEN / name / "expected.safetensors")
    suffix = ".gelu_tanh" if name == "crowsonkb" else ""
    for ours, key in (
        (model.encode_image(expected["images"]), f"image_features{suffix}"),
        (model.encode_text(expected["tokens"]), f"text_features{suffix}"),
    ):
        close(ours, unit_norm(expected[key]), "unit rows in float32 through a dozen layers", atol=1e-5)
    assert model.config.name == name
    assert model.config.inv_tau == 30.0
    assert model.config.scale_hopfield == (15.0 if name == "crowsonkb" else 8.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_shows_its_format(name: str) -> None:
    assert convert_checkpoint(GOLDEN / name).format == ("crowsonkb" if name == "crowsonkb" else "mljku")


@pytest.mark.parametrize("name", ["mljku_rn", "mljku_vit"])
def test_every_tensor_of_a_torch_checkpoint_is_used_once_or_named(name: str) -> None:
    converted = convert_checkpoint(GOLDEN / name)
    source = torch.load(GOLDEN / name / "checkpoint.pt", weights_only=True)["state_dict"]
    assert converted.ignored == ["module.logit_scale_hopfield"]
    assert len(converted.model.state_dict()) == len(source) - 1
    assert sum(t.numel() for t in converted.model.state_dict().values()) == sum(t.numel() for t in source.values()) - 1


def test_every_array_of_a_haiku_checkpoint_is_used_once() -> None:
    converted = convert_checkpoint(GOLDEN / "crowsonkb")
    towers = read_haiku_pickle(GOLDEN / "crowsonkb/checkpoint.pkl")["params"]
    count = sum(array.size for tower in towers for group in tower.values() for array in group.values())
    ours = sum(t.numel() for name, t in converted.model.state_dict().items() if name != "logit_scale")
    assert converted.ignored == []
    assert ours == count


@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_more_or_less_is_an_error(name: str, tmp_path: Path) -> None:
    for change in ("more", "less"):
        file = tmp_path / CHECKPOINTS[name]
        if name == "crowsonkb":
            contents = read_haiku_pickle(GOLDEN / name / CHECKPOINTS[name])
            tower = contents["params"][1]
            tower["text_encoder/extra"] = {"w": np.zeros(2, np.float32)}
            if change == "less":
                del tower["text_encoder/extra"], tower["text_encoder/layer_1/feed_forward/linear_0"]["b"]
            file.write_bytes(pickle.dumps(contents, protocol=4))
        else:
            contents = torch.load(GOLDEN / name / "checkpoint.pt", weights_only=True)
            contents["state_dict"]["module.extra"] = torch.zeros(2)
            if change == "less":
                del contents["state_dict"]["module.extra"], contents["state_dict"]["module.transformer.ln_final.bias"]
            torch.save(contents, file)
        with pytest.raises(ConversionError, match="extra" if change == "more" else "lack"):
            convert_checkpoint(file, config=GOLDEN / name / "config.json")


def test_a_configuration_of_another_model_is_an_error(tmp_path: Path) -> None:
    described = json.loads((GOLDEN / "mljku_vit/config.json").read_text(encoding="utf-8"))
    for key, value, complaint in (
        ("vision_layers", 4, "lack"),
        ("embed_dim", 25, "shape"),
        ("vision_layers", [1, 1, 1, 1], "no patch_size"),
        ("transformer_width", "wide", "transformer_width"),
        ("transformer_heads", 5, "heads"),
    ):
        with pytest.raises(ConversionError, match=complaint):
            convert_checkpoint(GOLDEN / "mljku_vit/checkpoint.pt", config=described | {key: value})


def test_a_vit_s_shapes_say_enough_but_for_the_heads(tmp_path: Path) -> None:
    """Without the configuration: CLIP's rule of a head for 64 channels, or an error where it cannot hold."""
    shutil.copy(GOLDEN / "mljku_vit/checkpoint.pt", tmp_path)
    with pytest.raises(ConversionError, match="number of heads cannot be read from its width 48") as raised:
        convert_checkpoint(tmp_path / "checkpoint.pt")
    assert "--config" in str(raised.value.hint)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_shapes_alone_where_the_rule_holds(kind: str, tmp_path: Path) -> None:
    from cloob_cli.core.model import build
    from cloob_cli.core.model_config import ModelConfig

    visions = {
        "vit": {"kind": "vit", "image_size": 48, "patch_size": 16, "width": 64, "layers": 3},
        "resnet": {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 2, 1, 1]},
    }
    text = {"vocab_size": 300, "context_length": 20, "width": 64, "heads": 1, "layers": 2, "activation": "quick_gelu"}
    described = {"embed_dim": 24, "vision": visions[kind] | {"activation": "quick_gelu"}, "text": text}
    model = build(ModelConfig.model_validate(described), seed=0)
    torch.save({"state_dict": ml_jku_names(model.state_dict())}, tmp_path / "checkpoint.pt")
    converted = convert_checkpoint(tmp_path / "checkpoint.pt")
    kept = {"embed_dim", "vision", "text"}
    assert converted.config.model_dump(include=kept) == model.config.model_dump(include=kept)


def test_a_temperature_keeps_the_digits_that_float32_has(tmp_path: Path) -> None:
    contents = torch.load(GOLDEN / "mljku_vit/checkpoint.pt", weights_only=True)
    contents["state_dict"]["module.logit_inv_tau"].fill_(math.log(1 / 0.07))  # CLIP's own, 14.2857
    contents["state_dict"]["module.logit_scale_hopfield"].fill_(math.log(8.0625))
    torch.save(contents, tmp_path / "checkpoint.pt")
    config = convert_checkpoint(tmp_path / "checkpoint.pt", config=GOLDEN / "mljku_vit/config.json").config
    assert (config.inv_tau, config.scale_hopfield) == (14.2857, 8.0625)


def test_shapes_of_a_haiku_checkpoint_give_each_tower_its_own_heads(tmp_path: Path) -> None:
    """An image tower of 128 channels and a text tower of 64: two heads and one."""
    width = {"vi_t_image_encoder": 128, "text_encoder": 64}

    def grown(array: np.ndarray, old: int, new: int) -> np.ndarray:
        return np.zeros([size * new // old if size % old == 0 else size for size in array.shape], np.float32)

    contents = read_haiku_pickle(GOLDEN / "crowsonkb/checkpoint.pkl")
    described = json.loads((GOLDEN / "crowsonkb/config.json").read_text(encoding="utf-8"))
    old = {name: described[key]["d_model"] for name, key in zip(width, ("image_encoder", "text_encoder"), strict=True)}
    for tower in contents["params"]:
        for module, group in tower.items():
            name = module.partition("/")[0]
            for part, array in group.items():
                group[part] = grown(array, old[name], width[name])
    (tmp_path / "checkpoint.pkl").write_bytes(pickle.dumps(contents, protocol=4))
    config = convert_checkpoint(tmp_path / "checkpoint.pkl").config
    assert (config.vision.width, config.vision.heads) == (128, 2)
    assert (config.text.width, config.text.heads) == (64, 1)


def ml_jku_names(state: dict[str, Any]) -> dict[str, Any]:
    """The names of ml-jku's checkpoints for ours."""
    names = {}
    for name, tensor in state.items():
        text = not name.startswith("visual.") and name != "logit_scale"
        other = "logit_inv_tau" if name == "logit_scale" else f"transformer.{name}" if text else name
        names[f"module.{other}"] = tensor
    return names


def test_an_architecture_by_name() -> None:
    with pytest.raises(ConversionError, match="unknown architecture 'RN51'") as raised:
        convert_checkpoint(GOLDEN / "mljku_rn/checkpoint.pt", config={"architecture": "RN51"})
    assert raised.value.hint == "did you mean 'RN50'?"
    with pytest.raises(ConversionError, match=r"shape|lack"):  # a real name, another model
        convert_checkpoint(GOLDEN / "mljku_rn/checkpoint.pt", config={"architecture": "RN50"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
def test_truncated_files(name: str, share: float, tmp_path: Path) -> None:
    data = (GOLDEN / name / CHECKPOINTS[name]).read_bytes()
    file = tmp_path / CHECKPOINTS[name]
    file.write_bytes(data[: int(len(data) * share)])
    for format in (None, "crowsonkb" if name == "crowsonkb" else "mljku"):
        with pytest.raises(ConversionError):
            convert_checkpoint(file, format, config=GOLDEN / name / "config.json")


@pytest.mark.parametrize("format", [None, "mljku", "crowsonkb", "rinna"])
@pytest.mark.parametrize("contents", [b"", b"hello\n", b"\x00" * 100, b"PK\x03\x04 no zip", b"\x80\x04K\x01."])
def test_files_that_are_no_checkpoint(format: str | None, contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(contents)
    with pytest.raises(ConversionError):
        convert_checkpoint(tmp_path / "checkpoint.pt", format)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no such file"):
        convert_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(ConversionError, match="holds no checkpoint"):
        convert_checkpoint(tmp_path)
    with pytest.raises(ConversionError, match="unknown format"):
        convert_checkpoint(GOLDEN / "mljku_rn", "flax")
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConversionError, match="no JSON object"):
        convert_checkpoint(GOLDEN / "mljku_rn/checkpoint.pt", config=tmp_path / "config.json")


def test_half_precision_sources_become_float32(tmp_path: Path) -> None:
    contents = torch.load(GOLDEN / "mljku_vit/checkpoint.pt", weights_only=True)
    contents["state_dict"] = {name: tensor.half() for name, tensor in contents["state_dict"].items()}
    torch.save(contents, tmp_path / "checkpoint.pt")
    model = convert_checkpoint(tmp_path / "checkpoint.pt", config=GOLDEN / "mljku_vit/config.json").model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
