"""Model folders: what goes in comes out, and whatever is wrong with one is said in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from cloob_cli import load
from cloob_cli.checkpoint.folder import (
    CONFIG_FILE,
    FINGERPRINT_FILE,
    MODEL_FILES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    open_model,
    save_model,
    weights_sha256,
)
from cloob_cli.checkpoint.safetensors_file import read_header
from cloob_cli.core.model import CloobModel
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import ModelFolderError


def embeddings(model: CloobModel) -> tuple[torch.Tensor, torch.Tensor]:
    assert model.preprocess is not None
    assert model.tokenize is not None
    pixels = model.preprocess(Image.linear_gradient("L").convert("RGB"))[None]
    tokens = model.tokenize(["a red bicycle", "the sea"])
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(tokens)


# ------------------------------------------------------------------ what is saved is what is opened


def test_a_saved_model_computes_the_same_after_loading(
    model_folder: Path, tiny_model: CloobModel, tokenizer: Tokenizer
) -> None:
    model = load(str(model_folder), device="cpu")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer(["two cats on a roof"])
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), tiny_model.encode_image(pixels))
        assert torch.equal(model.encode_text(tokens), tiny_model.encode_text(tokens))
    assert model.config == tiny_model.config
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.tokenize(["a cat"]), tokenizer(["a cat"]))  # type: ignore[misc]


def test_a_folder_holds_its_files_and_the_configuration_twice(model_folder: Path) -> None:
    assert {path.name for path in model_folder.iterdir()} == {*MODEL_FILES, FINGERPRINT_FILE}
    _, metadata = read_header(model_folder / WEIGHTS_FILE)
    assert json.loads(metadata["config"]) == json.loads((model_folder / "config.json").read_text())


def test_the_weights_file_says_what_it_is_without_config_json(model_folder: Path) -> None:
    before = embeddings(load(str(model_folder), device="cpu"))
    (model_folder / "config.json").unlink()
    after = embeddings(load(str(model_folder), device="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_config_json_serves_weights_without_metadata(model_folder: Path) -> None:
    weights = model_folder / WEIGHTS_FILE
    save_file(load_file(weights), weights)
    assert load(str(model_folder), device="cpu").config.name == "tiny"


def test_float16_weights_open_as_float32_on_a_cpu(tmp_path: Path, tiny_model: CloobModel, tokenizer: Tokenizer) -> None:
    save_model(tmp_path / "half", tiny_model, tokenizer, card_text="", dtype=torch.float16)
    header, _ = read_header(tmp_path / "half" / WEIGHTS_FILE)
    assert {dtype for dtype, _ in header.values()} == {"F16"}
    model = load(str(tmp_path / "half"), device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = tiny_model.state_dict()["visual.conv1.weight"].half().float()
    assert torch.equal(model.state_dict()["visual.conv1.weight"], stored)


@pytest.mark.parametrize("dtype", ["bf16", torch.bfloat16])
def test_another_number_format_on_request(model_folder: Path, dtype: str | torch.dtype) -> None:
    model = load(str(model_folder), device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    image, text = embeddings(model)
    assert image.dtype == text.dtype == torch.float32


def test_a_failed_save_leaves_the_old_folder(
    model_folder: Path, tiny_model: CloobModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}

    def full(self: Tokenizer, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_model(model_folder, tiny_model, tokenizer, card_text="new")
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before
    assert [path.name for path in model_folder.parent.iterdir()] == [model_folder.name]


def test_the_hash_is_that_of_the_weights_file(model_folder: Path) -> None:
    import hashlib

    expected = hashlib.sha256((model_folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert weights_sha256(model_folder) == expected


# ------------------------------------------------------------------ invalid folders


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(ModelFolderError) as caught:
        open_model(folder, "cpu")
    message = caught.value.message
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TOKENIZER_FILE])
def test_a_missing_file_is_named(model_folder: Path, name: str) -> None:
    (model_folder / name).unlink()
    fails(model_folder, name)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named(model_folder: Path, name: str, share: float) -> None:
    path = model_folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    fails(model_folder, name)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0 an image", b"[]", b"<html>404</html>", b"\0" * 64])
def test_a_foreign_file_is_named(model_folder: Path, name: str, data: bytes) -> None:
    (model_folder / name).write_bytes(data)
    fails(model_folder, name)


def test_configurations_that_differ_are_refused(model_folder: Path) -> None:
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inv_tau": 31.0}))
    fails(model_folder, "config.json", "inv_tau")


def test_an_unknown_key_is_an_error_with_the_nearest_one(model_folder: Path) -> None:
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inv_tao": 31.0}))
    with pytest.raises(ModelFolderError) as caught:
        open_model(model_folder, "cpu")
    assert caught.value.hint == "did you mean 'inv_tau'?"


def test_neither_configuration(model_folder: Path) -> None:
    weights = model_folder / WEIGHTS_FILE
    save_file(load_file(weights), weights)
    (model_folder / "config.json").unlink()
    fails(model_folder, "config.json")


def respoil(folder: Path, change: object) -> None:
    path = folder / WEIGHTS_FILE
    tensors, (_, metadata) = load_file(path), read_header(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata=metadata)


def test_wrong_tensors_are_named(model_folder: Path) -> None:
    respoil(model_folder, lambda t: t.update({"visual.conv1.weight": torch.zeros(4, 4)}))
    fails(model_folder, "visual.conv1.weight", "[4, 4]")


def test_missing_tensors_are_named(model_folder: Path) -> None:
    respoil(model_folder, lambda t: t.pop("ln_final.bias"))
    fails(model_folder, "ln_final.bias")


def test_foreign_tensors_are_named(model_folder: Path) -> None:
    respoil(model_folder, lambda t: t.update({"bert.weight": torch.zeros(2)}))
    fails(model_folder, "bert.weight")


def test_weights_that_are_no_floats_are_refused(model_folder: Path) -> None:
    respoil(model_folder, lambda t: t.update({"ln_final.bias": torch.zeros(32, dtype=torch.int64)}))
    fails(model_folder, "ln_final.bias", "int64")


def test_a_configuration_that_claims_a_giant_is_refused_at_once(model_folder: Path) -> None:
    weights = model_folder / WEIGHTS_FILE
    save_file(load_file(weights), weights)
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    config["text"]["layers"] = 10**9
    path.write_text(json.dumps(config))
    fails(model_folder, "far larger")


EXTREMES = [-1, 0, 10**18, 2**63, 1e300, float("inf"), float("nan"), "", None, [], {}]


SIZES = ["vision.image_size", "vision.mlp_ratio", "text.context_length", "text.vocab_size", "tokenizer.pad_id"]
IMPOSSIBLE = [(key, value) for key in SIZES for value in EXTREMES if (key, value) != ("tokenizer.pad_id", 0)]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE, ids=str)
def test_sizes_that_no_model_has_are_errors_of_one_line(model_folder: Path, key: str, value: object) -> None:
    weights = model_folder / WEIGHTS_FILE
    save_file(load_file(weights), weights)
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    section, name = key.split(".")
    config[section][name] = value
    path.write_text(json.dumps(config))
    fails(model_folder)


def test_the_folder_of_a_training_run_names_the_model_in_it(model_folder: Path) -> None:
    (model_folder.parent / "run").mkdir()
    model_folder.rename(model_folder.parent / "run" / "model")
    with pytest.raises(ModelFolderError) as caught:
        load(str(model_folder.parent / "run"))
    assert caught.value.hint == f"did you mean {model_folder.parent / 'run' / 'model'}?"


def test_the_tokenizer_of_another_model_is_refused(model_folder: Path, tokenizer: Tokenizer) -> None:
    from cloob_cli.data.tokenizer import clip_tokenizer

    clip_tokenizer(12).save(model_folder / TOKENIZER_FILE)
    fails(model_folder, "tokenizer.json", "49408", str(tokenizer.vocab_size))


def with_header(header: dict[str, object], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES = {
    "a header longer than the file": with_header({}, b"", length=2**40),
    "a header of 2^63 bytes": with_header({}, b"", length=2**63),
    "offsets beyond the file": with_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234"),
    "offsets that overlap": with_header(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        b"0" * 12,
    ),
    "offsets backwards": with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"0" * 8),
    "a gap": with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"0" * 8),
    "a shape that does not fit": with_header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}, b"0" * 8),
    "a shape that overflows": with_header(
        {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, b"0" * 8
    ),
    "an unknown dtype": with_header({"a": {"dtype": "P32", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 4),
    "trailing bytes": with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 9),
    "metadata that is no text": with_header({"__metadata__": {"config": 3}}, b""),
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(model_folder: Path, data: bytes) -> None:
    (model_folder / WEIGHTS_FILE).write_bytes(data)
    fails(model_folder, WEIGHTS_FILE)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 3000), value=st.integers(0, 255))
def test_any_byte_of_the_header_may_change_without_a_traceback(model_folder: Path, position: int, value: int) -> None:
    path = model_folder / WEIGHTS_FILE
    original = path.read_bytes()
    changed = bytearray(original)
    changed[position % len(changed)] = value
    path.write_bytes(bytes(changed))
    message = ""
    try:
        open_model(model_folder, "cpu")
    except ModelFolderError as error:
        message = error.message
    finally:
        path.write_bytes(original)
    assert "\n" not in message


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(
                st.sampled_from(["embed_dim", "vision", "text", "kind", "layers", "width"]) | st.text(), s
            )
        ),
    )
)
def test_any_json_as_configuration_is_an_error_of_one_line(model_folder: Path, data: object) -> None:
    (model_folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(ModelFolderError) as caught:
        open_model(model_folder, "cpu")
    assert "\n" not in caught.value.message
