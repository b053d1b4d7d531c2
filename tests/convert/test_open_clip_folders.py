"""Folders of open_clip are opened where they are; open_clip itself, where it is installed, is the judge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import RESNET, TEXT, VIT, open_clip_config, save_open_clip, tiny_clip
from margins import close
from safetensors.torch import load_file, save_file

import cloob_cli
from cloob_cli.checkpoint.behavior_fingerprint import fixed_images
from cloob_cli.checkpoint.folder import read_config
from cloob_cli.convert import convert_checkpoint
from cloob_cli.core.model import unit_norm
from cloob_cli.errors import ConversionError, MissingConfigurationError, ModelFolderError, UnsafeCheckpointError
from cloob_cli.export import export_model
from tests.helpers import hostile_pickles as hostile

HELPERS = Path(__file__).parents[1] / "helpers"
GOLDEN = Path(__file__).parents[1] / "golden"
UNIT_ROWS = "unit rows in float32 through a dozen layers"


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["mljku_vit", "mljku_rn"])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_the_reference_program_s_features_from_open_clip_s_form(name: str, file: str, tmp_path: Path) -> None:
    converted = convert_checkpoint(GOLDEN / name)
    vision, text = converted.config.vision, converted.config.text
    described = {"image_size": vision.image_size, "layers": vision.layers, "width": vision.width}
    described["head_width"] = vision.width * (32 if name == "mljku_rn" else 1) // vision.head_count
    if vision.patch_size:
        described["patch_size"] = vision.patch_size
    texts = {key: getattr(text, key) for key in ("context_length", "vocab_size", "width", "heads", "layers")}
    config = open_clip_config(described, text_cfg=texts, quick_gelu=True, embed_dim=converted.config.embed_dim)
    folder = save_open_clip(tmp_path / name, converted.model, config, file)
    model, expected = cloob_cli.load(str(folder), device="cpu"), load_file(GOLDEN / name / "expected.safetensors")
    close(model.encode_image(expected["images"]), unit_norm(expected["image_features"]), UNIT_ROWS, atol=1e-5)
    close(model.encode_text(expected["tokens"]), unit_norm(expected["text_features"]), UNIT_ROWS, atol=1e-5)
    assert model.config.name == name
    assert model.config.inv_tau == 30.0
    assert model.config.scale_hopfield is None
    assert model.config.preprocess.model_dump() == {
        "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "resize": "squash", "interpolation": "bicubic",
    }  # fmt: skip
    assert read_config(folder) == model.config


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_it_goes_back_out_as_it_came(kind: str, tmp_path: Path) -> None:
    config = open_clip_config(VIT if kind == "vit" else RESNET, quick_gelu=True)
    folder = save_open_clip(tmp_path / "in", tiny_clip(kind), config)
    export_model(folder, "open_clip", tmp_path / "out")
    came, went = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("in", "out"))
    assert came.keys() == went.keys()
    assert all(torch.equal(came[name], went[name]) for name in came)
    assert read_config(tmp_path / "out").model_dump(exclude={"name"}) == read_config(folder).model_dump(
        exclude={"name"}
    )


def test_a_text_tower_that_is_a_module_of_its_own_and_half_precision(tmp_path: Path) -> None:
    model = tiny_clip()
    folder = save_open_clip(tmp_path / "in", model, open_clip_config(quick_gelu=True, custom_text=True))
    apart = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    state = {f"text.{name}" if name.startswith(apart) else name: tensor for name, tensor in model.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    opened = cloob_cli.load(str(folder), device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor.half().float().reshape(tensor.shape)), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}, "init_logit_bias": -10}, "SigLIP"),
        ({"vision_cfg": {"timm_model_name": "convnext_base", "image_size": 224}}, "ConvNeXt (timm's convnext_base)"),
        ({"vision_cfg": {"timm_model_name": "vit_relpos", "image_size": 224}}, "timm's image tower vit_relpos"),
        ({"multimodal_cfg": {"width": 512}}, "CoCa"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "the text tower roberta-base of transformers"),
        ({"vision_cfg": VIT | {"attentional_pool": True}}, "attentional pool"),
        ({"vision_cfg": VIT | {"pool_type": "avg"}}, "vision_cfg.pool_type"),
        ({"vision_cfg": VIT | {"ls_init_value": 0.1}}, "vision_cfg.ls_init_value"),
        ({"vision_cfg": VIT | {"pos_embed_type": "sin_cos_2d"}}, "pos_embed_type"),
        ({"vision_cfg": VIT | {"image_size": [32, 64]}}, "not square"),
        ({"vision_cfg": VIT | {"qk_norm": True}}, "qk_norm"),
        ({"text_cfg": TEXT | {"pool_type": "eos"}}, "text_cfg.pool_type"),
        ({"text_cfg": TEXT | {"tokenizer_kwargs": {"reduction_mask": "syntax"}}}, "reduction_mask"),
        ({"text_cfg": TEXT | {"hf_tokenizer_name": "bert-base-uncased"}}, "no tokenizer.json"),
        ({"vision_cfg": VIT | {"width": 48}}, "shape"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named_in_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save_open_clip(tmp_path / "in", tiny_clip(), open_clip_config(quick_gelu=True))
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelFolderError) as raised:
        cloob_cli.load(str(folder), device="cpu")
    assert words in raised.value.message
    assert "\n" not in raised.value.message
    with pytest.raises(ConversionError):
        convert_checkpoint(folder)


def test_preprocessing_that_is_not_supported(tmp_path: Path) -> None:
    config = open_clip_config(quick_gelu=True)
    for change, words in (({"resize_mode": "longest"}, "resize_mode"), ({"size": 48}, "48 pixels for a tower of 32")):
        folder = save_open_clip(tmp_path / words.split()[0], tiny_clip(), config | {"preprocess_cfg": change})
        with pytest.raises(ModelFolderError, match=words):
            cloob_cli.load(str(folder), device="cpu")


def test_a_bin_that_carries_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = save_open_clip(tmp_path / "in", tiny_clip(), open_clip_config(), "open_clip_pytorch_model.bin")
    data = hostile.torch_checkpoints(tmp_path)["pt_system"]
    (folder / "open_clip_pytorch_model.bin").write_bytes(data)
    with pytest.raises(UnsafeCheckpointError, match="asks for more than tensors"):
        cloob_cli.load(str(folder), device="cpu")
    assert not (tmp_path / "pt_system").exists()


def test_weights_alone_need_their_configuration(tmp_path: Path) -> None:
    folder = save_open_clip(tmp_path / "in", tiny_clip(), open_clip_config(quick_gelu=True))
    weights = Path(shutil.move(folder / "open_clip_model.safetensors", tmp_path / "alone.safetensors"))
    with pytest.raises(MissingConfigurationError, match="GELU or QuickGELU"):
        convert_checkpoint(weights)
    converted = convert_checkpoint(weights, config=folder / "open_clip_config.json")
    assert converted.format == "open_clip"
    assert converted.ignored == []


IN_OPEN_CLIP = """
import json, sys, torch, open_clip
from pathlib import Path
from safetensors.torch import save_file
from cloob_cli.checkpoint.behavior_fingerprint import fixed_images, TEXTS
for folder in map(Path, sys.argv[1:]):
    described = json.loads((folder / "open_clip_config.json").read_text())
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP if described["model_cfg"].pop("custom_text", False) else open_clip.CLIP
    model = model(**described["model_cfg"]).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                if "running_var" in name:
                    tensor.uniform_(0.5, 2.0)
                elif tensor.ndim == 1:
                    tensor.add_(torch.randn_like(tensor) * 0.2)
        model.logit_scale.fill_(4.2)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in fixed_images()])
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
    found = {"pixels": pixels, "tokens": tokens, "images": images, "texts": texts}
    found["inv_tau"] = model.logit_scale.exp().reshape(1)
    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, folder / "found.safetensors")
"""

MODELS = {
    "resnet": open_clip_config(RESNET),
    "resnet_quick_gelu": open_clip_config(RESNET | {"layers": [2, 1, 3, 1], "width": 16}, quick_gelu=True),
    "vit": open_clip_config(),
    "vit_quick_gelu": open_clip_config(VIT | {"patch_size": 16, "head_width": 16}, quick_gelu=True),
    "vit_mlp": open_clip_config(VIT | {"mlp_ratio": 3.27, "act_kwargs": {"approximate": "tanh"}}),
    "vit_no_pre_norm": open_clip_config(VIT | {"no_ln_pre": True, "norm_kwargs": {"eps": 1e-3}}),
    "vit_custom_text": open_clip_config(custom_text=True),
    "vit_first_token": open_clip_config(
        text_cfg={"no_causal_mask": True, "pool_type": "first", "proj_bias": True, "mlp_ratio": 2.0}
    ),
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.skipif(
    find_spec("open_clip") is None, reason="needs `pip install --no-deps open_clip_torch` and `pip install regex tqdm`"
)
def test_open_clip_s_own_models_give_the_same_embeddings(tmp_path: Path) -> None:
    for name, config in MODELS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    paths = [str(HELPERS / "torchvision_stand_in"), str(HELPERS.parents[1])]
    finished = subprocess.run(
        [sys.executable, "-c", IN_OPEN_CLIP, *(str(tmp_path / name) for name in MODELS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    from cloob_cli.checkpoint.behavior_fingerprint import TEXTS

    for name in MODELS:
        expected = load_file(tmp_path / name / "found.safetensors")
        for read in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
            model = cloob_cli.load(str(tmp_path / name), device="cpu")
            pixels = torch.stack([model.preprocess(image) for image in fixed_images()])
            tokens = model.tokenize(TEXTS)
            assert torch.equal(tokens, expected["tokens"]), name
            close(pixels, expected["pixels"], "numbers of up to 4 in float32", atol=1e-5)
            close(model.encode_image(pixels), expected["images"], UNIT_ROWS, atol=1e-5)
            close(model.encode_text(tokens), expected["texts"], UNIT_ROWS, atol=1e-5)
            close(model.inv_tau.reshape(1), expected["inv_tau"], "exp of one float32", rtol=1e-6)
            (tmp_path / name / read).unlink()  # what comes next is read then
