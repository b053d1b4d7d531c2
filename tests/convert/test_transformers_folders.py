"""Folders of transformers' CLIPModel are opened where they are, and transformers is the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_folders import TEXT, open_clip_config, save_open_clip, tiny_clip
from margins import close
from PIL import Image
from safetensors.torch import load_file, save_file

import cloob_cli
from cloob_cli import assets
from cloob_cli.atomic_files import sha256_of
from cloob_cli.checkpoint.behavior_fingerprint import TEXTS, fixed_images
from cloob_cli.checkpoint.folder import open_model, read_config, weights_sha256
from cloob_cli.convert import convert_checkpoint
from cloob_cli.convert.transformers_names import to_transformers
from cloob_cli.data.tokenizer import train_bpe
from cloob_cli.errors import ConversionError, ModelFolderError, UnsafeCheckpointError
from cloob_cli.export import export_model
from tests.helpers import hostile_pickles as hostile

UNIT_ROWS = "unit rows in float32 through a dozen layers"
TOWERS: dict[str, dict[str, dict[str, Any]]] = {
    "quick_gelu": {"vision": {}, "text": {}},
    "gelu": {
        "vision": {"hidden_act": "gelu", "num_attention_heads": 8, "intermediate_size": 80, "layer_norm_eps": 1e-3},
        "text": {"hidden_act": "gelu", "num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 100},
    },
    "tanh": {
        "vision": {"hidden_act": "gelu_pytorch_tanh", "patch_size": 16},
        "text": {"hidden_act": "gelu_pytorch_tanh", "eos_token_id": 2, "bos_token_id": 0},
    },
}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
WORDS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS |= {"max_position_embeddings": 16}


def made_by_transformers(folder: Path, towers: dict[str, dict[str, Any]]) -> Any:
    """Write a CLIPModel with random weights, and its processor; return the model."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers to compare with")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config=VISION | towers["vision"], text_config=WORDS | towers["text"], projection_dim=24
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms and biases that are not zero or one
        model.logit_scale.fill_(4.2)
    model.save_pretrained(folder)
    transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_std=[0.3, 0.2, 0.1]),
        transformers.CLIPTokenizer(**clip_vocabulary(), model_max_length=16),
    ).save_pretrained(folder)
    return model


def clip_vocabulary() -> dict[str, Any]:
    """CLIP's vocabulary with the names that its special tokens have in transformers."""
    model = json.loads(assets.clip_tokenizer_file().read_text(encoding="utf-8"))["model"]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(entry, entry): number for entry, number in model["vocab"].items()}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return {"vocab": vocabulary, "merges": [tuple(pair) for pair in model["merges"]]}


@pytest.mark.numeric
@pytest.mark.parametrize("name", TOWERS)
def test_the_same_embeddings_pixels_and_tokens(name: str, tmp_path: Path) -> None:
    theirs = made_by_transformers(tmp_path / "in", TOWERS[name])
    import transformers

    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "in")
    ours = cloob_cli.load(str(tmp_path / "in"), device="cpu")
    assert ours.preprocess is not None
    assert ours.tokenize is not None
    sizes = [(64, 64), (320, 240), (96, 160), (32, 32)]  # an even rest to crop, see docs/zoo.md
    pictures = [image.resize(size) for image in fixed_images() for size in sizes]
    inputs = processor(text=TEXTS, images=pictures, padding=True, truncation=True, return_tensors="pt")
    pixels, tokens = torch.stack([ours.preprocess(picture) for picture in pictures]), ours.tokenize(TEXTS)
    # One graylevel of 255, by the smallest of these deviations, with a margin of two.
    close(pixels, inputs["pixel_values"], "resized by another library: 1 of 255 off", atol=2 / 255 / 0.1)
    same = [0, 3]  # the second has an entity, the third broken letters: transformers does not repair these
    for row in same:
        length = int(tokens[row].argmax()) + 1
        assert tokens[row, :length].tolist() == inputs["input_ids"][row, :length].tolist()
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=pixels)
    close(ours.encode_image(pixels), found.image_embeds, UNIT_ROWS, atol=1e-5)
    close(ours.encode_text(tokens), found.text_embeds, UNIT_ROWS, atol=1e-5)
    close(ours.inv_tau, theirs.logit_scale.exp().detach(), "exp of one float32", rtol=1e-6)
    assert ours.config.inv_tau == float(f"{float(ours.inv_tau):.6g}")
    assert ours.config.name == "in"
    assert ours.config.tokenizer.kind == "clip"
    assert ours.config.preprocess.std == (0.3, 0.2, 0.1)
    assert read_config(tmp_path / "in") == ours.config
    assert weights_sha256(tmp_path / "in") == sha256_of(tmp_path / "in/model.safetensors")


@pytest.mark.numeric
def test_and_back_out_to_transformers(tmp_path: Path) -> None:
    theirs = made_by_transformers(tmp_path / "in", TOWERS["gelu"])
    import transformers

    export_model(tmp_path / "in", "transformers", tmp_path / "out")
    came, went = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert came.keys() == went.keys()
    assert all(torch.equal(came[name], went[name]) for name in came)
    again = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(
        text=["a red bicycle", "two cats"],
        images=fixed_images()[2:],
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        found, expected = again(**inputs), theirs(**inputs)
    close(found.image_embeds, expected.image_embeds, UNIT_ROWS, atol=1e-5)
    close(found.text_embeds, expected.text_embeds, UNIT_ROWS, atol=1e-5)
    assert read_config(tmp_path / "out").model_dump(exclude={"name"}) == read_config(tmp_path / "in").model_dump(
        exclude={"name"}
    )


@pytest.mark.numeric
def test_from_open_clip_to_transformers_and_sentence_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers to compare with")
    folder = save_open_clip(tmp_path / "in", tiny_clip(), open_clip_config(quick_gelu=True))
    export_model(folder, "transformers", tmp_path / "out")
    ours = open_model(folder, "cpu", "fp32")
    assert ours.preprocess is not None
    assert ours.tokenize is not None
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    texts, image = ["a red bicycle", "two cats"], fixed_images()[2]
    pixels, tokens = ours.preprocess(image)[None], ours.tokenize(texts)
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=pixels)
    close(found.image_embeds, ours.encode_image(pixels), UNIT_ROWS, atol=1e-5)
    close(found.text_embeds, ours.encode_text(tokens), UNIT_ROWS, atol=1e-5)
    sentences = pytest.importorskip("sentence_transformers", reason="needs `pip install sentence-transformers`")
    model = sentences.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    by_sentences = torch.from_numpy(model.encode(texts, normalize_embeddings=True))
    close(by_sentences, ours.encode_text(tokens), UNIT_ROWS, atol=1e-5)


# ---------------------------------------------------------------------------- without the package transformers


def folder_of(path: Path, change: Callable[[dict[str, Any]], object] | None = None, **processor: Any) -> Path:
    """The folder of a small CLIPModel, in the form of transformers 4."""
    path.mkdir()
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config: dict[str, Any] = {
        "model_type": "clip", "projection_dim": 24,
        "vision_config": {"image_size": 32, "patch_size": 8, **tower},
        "text_config": {"max_position_embeddings": 16, "vocab_size": 49408, "eos_token_id": 2, **tower},
        "text_config_dict": None,
    }  # fmt: skip
    if change:
        change(config)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    described = {"size": 32, "crop_size": 32, "resample": 3, "do_center_crop": True, "do_normalize": True}
    (path / "preprocessor_config.json").write_text(json.dumps(described | processor), encoding="utf-8")
    save_file(to_transformers(tiny_clip().state_dict()), path / "model.safetensors")
    return path


def test_the_weights_are_ours_under_other_names(tmp_path: Path) -> None:
    opened, expected = open_model(folder_of(tmp_path / "in"), "cpu", "fp32").state_dict(), tiny_clip().state_dict()
    assert opened.keys() == expected.keys()
    assert all(torch.equal(opened[name], expected[name]) for name in expected)


def test_a_second_description_of_a_tower_counts(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["text_config_dict"] = config["text_config"]
        config["text_config"] = {"hidden_size": 99, "num_hidden_layers": 7}

    assert read_config(folder_of(tmp_path / "in", change)).text.width == 32


def test_a_bin_with_position_ids(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in")
    state = load_file(folder / "model.safetensors") | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert convert_checkpoint(folder).ignored == ["text_model.embeddings.position_ids"]
    (folder / "pytorch_model.bin").write_bytes(hostile.torch_checkpoints(tmp_path)["pt_system"])
    with pytest.raises(UnsafeCheckpointError, match="asks for more than tensors"):
        cloob_cli.load(str(folder), device="cpu")
    assert not (tmp_path / "pt_system").exists()


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, ("shortest", "bicubic")),
        ({"size": {"height": 32, "width": 32}, "resample": 2, "do_center_crop": False}, ("squash", "bilinear")),
        ({"do_normalize": False}, ("shortest", "bicubic")),
    ],
)
def test_preprocessing_as_the_file_says(processor: dict[str, Any], expected: tuple[str, str], tmp_path: Path) -> None:
    preprocess = read_config(folder_of(tmp_path / "in", image_mean=[0.5, 0.5, 0.5], **processor)).preprocess
    assert (preprocess.resize, preprocess.interpolation) == expected
    assert preprocess.mean == ((0.5,) * 3 if processor.get("do_normalize", True) else (0.0,) * 3)


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({"size": {"shortest_edge": 36}}, "shortest_edge"),
        ({"size": 224, "crop_size": 224}, "for a tower of 32 pixels"),
        ({"resample": 1}, "resample"),
        ({"do_resize": False}, "do_resize"),
        ({"crop_size": 24}, "cropped"),
    ],
)
def test_preprocessing_that_is_not_supported(processor: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=words) as raised:
        read_config(folder_of(tmp_path / "in", **processor))
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.update(model_type="siglip"), "the model type 'siglip' of transformers is not supported"),
        (lambda config: config.update(model_type="clip_vision_model"), "'clip_vision_model'"),
        (lambda config: config.update(model_type="vision-text-dual-encoder"), "'vision-text-dual-encoder'"),
        (lambda config: config["vision_config"].update(hidden_act="relu"), "hidden_act"),
        (lambda config: config["vision_config"].update(image_size=[32, 64]), "image_size"),
        (lambda config: config["text_config"].update(num_hidden_layers=3), "lacks the tensor"),
        (lambda config: config["text_config"].update(num_hidden_layers=1), "holds the tensor"),
        (lambda config: config["vision_config"].update(num_attention_heads=5), "width must be a multiple of heads"),
        (lambda config: config.update(vision_config="large"), "vision_config"),
        (lambda config: config["text_config"].update(eos_token_id=7), "read at the token 7"),
    ],
)
def test_other_models_are_named_in_one_line(
    change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "in", change)
    for opening in (lambda: cloob_cli.load(str(folder), device="cpu"), lambda: convert_checkpoint(folder)):
        with pytest.raises((ModelFolderError, ConversionError)) as raised:
            opening()
        assert words in raised.value.message
        assert "\n" not in raised.value.message


def test_a_vocabulary_of_its_own(tmp_path: Path) -> None:
    own = train_bpe(["a red bicycle", "two cats on a roof"], 540, context_length=16)
    folder = folder_of(tmp_path / "in", lambda config: config["text_config"].update(vocab_size=own.vocab_size))
    own.save(folder / "tokenizer.json")
    state = load_file(folder / "model.safetensors")
    state["text_model.embeddings.token_embedding.weight"] = torch.randn(own.vocab_size, TEXT["width"])
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match="names no bos_token"):
        read_config(folder)
    names = {"bos_token": "<start_of_text>", "eos_token": {"content": "<end_of_text>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    model = cloob_cli.load(str(folder), device="cpu")
    assert model.config.tokenizer.kind == "bpe"
    assert model.tokenize is not None
    assert torch.equal(model.tokenize(["A red cat"]), own(["A red cat"]))
    # Once more, as another program's and as ours.
    export_model(folder, "transformers", tmp_path / "out")
    assert cloob_cli.load(str(tmp_path / "out"), device="cpu").config.tokenizer == model.config.tokenizer


@pytest.mark.parametrize(
    ("file", "contents", "words"),
    [
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}, "the kind 'WordPiece' is not supported"),
        ("tokenizer.json", [], "no JSON object"),
        ("merges.txt", "#version: 0.2\na b\n", "its vocabulary is not CLIP's"),
    ],
)
def test_tokenizers_that_are_not_supported(file: str, contents: Any, words: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in")
    text = contents if isinstance(contents, str) else json.dumps(contents)
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(ModelFolderError, match=words) as raised:
        cloob_cli.load(str(folder), device="cpu")
    assert "\n" not in raised.value.message


def test_a_merges_file_of_clip(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in")
    lines = [" ".join(pair) for pair in clip_vocabulary()["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")
    assert read_config(folder).tokenizer.kind == "clip"


@pytest.mark.numeric
def test_commands_take_such_a_folder(cloob: Callable[..., Any], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos/a.png")
    done = cloob("embed", str(tmp_path / "photos"), "-o", str(tmp_path / "emb.npy"), "--model", str(folder))
    assert done.returncode == 0, done.stderr
    model = open_model(folder, "cpu", "fp32")
    assert model.preprocess is not None
    expected = model.encode_image(model.preprocess(Image.open(tmp_path / "photos/a.png"))[None])
    close(np.load(tmp_path / "emb.npy").astype(np.float32), expected, "stored in half precision", atol=2e-3)
    shown = cloob("zoo", "show", str(folder), "--json")
    assert json.loads(shown.stdout)["source"] == {"format": "transformers"}
    for command in (
        ("zoo", "convert", str(folder), "-o", str(tmp_path / "ours")),
        ("zoo", "add", str(folder), "--name", "own"),
    ):
        assert cloob(*command).returncode == 0
    for name in (str(tmp_path / "ours"), "own"):
        opened = cloob_cli.load(name, device="cpu")
        assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in opened.state_dict().items())
        assert opened.config.preprocess == model.config.preprocess


def test_another_program_s_model_is_refused_by_every_command(cloob: Callable[..., Any], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "siglip", lambda config: config.update(model_type="siglip"))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos/a.png")
    for command, code in (
        (("embed", str(tmp_path / "photos"), "-o", str(tmp_path / "emb.npy"), "--model", str(folder)), 2),
        (("zoo", "convert", str(folder), "-o", str(tmp_path / "ours")), 1),
        (("zoo", "add", str(folder), "--name", "own"), 1),
        (("zoo", "show", str(folder)), 2),
    ):
        done = cloob(*command)
        assert done.returncode == code, done.stderr
        assert "the model type 'siglip' of transformers is not supported" in done.stderr
        assert "Traceback" not in done.stderr
