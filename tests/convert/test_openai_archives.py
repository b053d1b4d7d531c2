"""OpenAI's TorchScript archives: made here by torch.jit, read without it, compared with what torch.jit computes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from margins import close
from safetensors.torch import load_file
from torch import nn

import cloob_cli
from cloob_cli.convert import convert_checkpoint
from cloob_cli.convert.torchscript_archive import is_torchscript, read_torchscript
from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.errors import ConversionError, UnsafeCheckpointError
from tests.helpers import hostile_pickles as hostile

HELPERS = Path(__file__).parents[1] / "helpers"
VISIONS: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "image_size": 48, "patch_size": 16, "width": 128, "layers": 2, "heads": 2},
    "resnet": {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 2, 1, 1], "heads": 4},
}
TEXT = {"vocab_size": 49408, "context_length": 20, "width": 64, "heads": 1, "layers": 2, "activation": "quick_gelu"}
INV_TAU = 90.0171  # exp(4.5), whose logarithm half precision has
# torch.jit says of itself that it is deprecated, and tracing names every number that it takes for a constant.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def small_clip(kind: str) -> CloobModel:
    vision = VISIONS[kind] | {"activation": "quick_gelu"}
    described = {"embed_dim": 24, "vision": vision, "text": TEXT, "inv_tau": INV_TAU}
    model = build(ModelConfig.model_validate(described), seed=0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "bn3.weight")) or "ln_" in name:
            parameter.normal_(float("weight" in name), 0.2, generator=generator)
    return model


class WithSizes(nn.Module):
    """A CLIP with the three numbers that OpenAI's archives hold beside the weights, and the mask of its blocks."""

    def __init__(self, model: CloobModel) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            self.register_parameter(name, getattr(model, name))
        for name, number in (("input_resolution", 48), ("context_length", 20), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))
        mask = torch.zeros(20, 20)
        for block in model.transformer.resblocks:
            block.attn_mask = mask
        object.__setattr__(self, "model", model)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*self.model(pixels, tokens), self.input_resolution + self.context_length + self.vocab_size)


def save_archive(path: Path, kind: str) -> CloobModel:
    """Write an archive in half precision, as OpenAI's are; returns the model."""
    model = small_clip(kind)
    size = model.config.vision.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            WithSizes(model), (torch.zeros(2, 3, size, size), model_tokens(2)), check_trace=False, strict=False
        )
        torch.jit.save(traced.half(), path)
    return model


def model_tokens(rows: int) -> torch.Tensor:
    tokens = torch.randint(1, 40_000, (rows, 20), generator=torch.Generator().manual_seed(1))
    tokens[:, -5:] = 0
    tokens[:, -6] = 49407
    return tokens


@pytest.mark.numeric
@pytest.mark.parametrize("kind", VISIONS)
def test_an_archive_computes_as_torch_jit_says(kind: str, tmp_path: Path) -> None:
    save_archive(tmp_path / "ViT.pt", kind)
    converted = convert_checkpoint(tmp_path / "ViT.pt", name="clip")
    assert converted.format == "openai"
    assert sorted(converted.ignored) == ["context_length", "input_resolution", "vocab_size"]
    expected = small_clip(kind).config
    for part in ("embed_dim", "text", "inv_tau"):
        assert getattr(converted.config, part) == getattr(expected, part)
    assert converted.config.vision.head_count == expected.vision.head_count
    assert converted.config.vision.model_dump(exclude={"heads"}) == expected.vision.model_dump(exclude={"heads"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(tmp_path / "ViT.pt").float()
    size = expected.vision.image_size
    pixels, tokens = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2)), model_tokens(3)
    images, texts, _ = theirs(pixels, tokens)
    reason = "unit rows in float32 through a few layers"
    close(converted.model.encode_image(pixels), images, reason, atol=1e-5)
    close(converted.model.encode_text(tokens), texts, reason, atol=1e-5)


def test_half_precision_and_commands(tmp_path: Path, cloob: Callable[..., Any]) -> None:
    save_archive(tmp_path / "RN50.pt", "resnet")
    with zipfile.ZipFile(tmp_path / "RN50.pt") as archive:
        assert any("/code/" in name for name in archive.namelist())
    assert is_torchscript(tmp_path / "RN50.pt")
    done = cloob("zoo", "add", str(tmp_path / "RN50.pt"), "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "left out, as inference does not need them: " in done.stderr
    done = cloob("zoo", "convert", str(tmp_path / "RN50.pt"), "-o", str(tmp_path / "out"), "--format", "openai")
    assert done.returncode == 0, done.stderr
    for name in ("mine", str(tmp_path / "out")):
        model = cloob_cli.load(name, device="cpu")
        assert model.config.source["format"] == "openai"
        assert model.config.inv_tau == INV_TAU


def test_a_state_dict_needs_a_word(tmp_path: Path) -> None:
    torch.save(small_clip("vit").state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ConversionError, match="GELU or QuickGELU") as raised:
        convert_checkpoint(tmp_path / "clip.pt")
    assert "--format openai" in str(raised.value.hint)
    assert convert_checkpoint(tmp_path / "clip.pt", "openai").config.vision.activation == "quick_gelu"


def test_another_archive_is_no_clip(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), tmp_path / "other.pt")
    assert set(read_torchscript(tmp_path / "other.pt")) == {"0.weight", "0.bias"}
    with pytest.raises(ConversionError, match="no CLIP of OpenAI"):
        convert_checkpoint(tmp_path / "other.pt")


# ---------------------------------------------------------------------------- archives that ask for more


def with_pickle(source: Path, target: Path, data: bytes, more: dict[str, bytes] | None = None) -> Path:
    """A copy of an archive whose data.pkl was replaced, or further files too."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as written:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            contents = data if name == "data.pkl" and data else (more or {}).get(name, archive.read(entry))
            written.writestr(entry.filename, contents)
    return target


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), path)
    return path


def test_none_of_the_hostile_pickles_runs(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    pickles = hostile.haiku_pickles(canary) | {"numpy_array": hostile.dumps({"params": b""})}
    for name, data in pickles.items():
        file = with_pickle(archive, tmp_path / f"{name}.pt", data)
        for format in (None, "openai"):
            with pytest.raises((UnsafeCheckpointError, ConversionError)):
                convert_checkpoint(file, format)
    assert list(canary.iterdir()) == []
    with pytest.raises(UnsafeCheckpointError, match=r"the name 'os\.system'"):
        convert_checkpoint(tmp_path / "os_system.pt")


def test_code_in_the_archive_is_not_looked_at(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        code = next(name.partition("/")[2] for name in source.namelist() if name.endswith(".py"))
    file = with_pickle(archive, tmp_path / "code.pt", b"", {code: b"this is no code at all"})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is", FutureWarning)  # from torch 2.15 on
        with pytest.raises(RuntimeError):
            torch.jit.load(file)
    assert set(read_torchscript(file)) == {"0.weight", "0.bias"}


def module(*attributes: bytes) -> bytes:
    """A pickle of one module with these attributes."""
    import pickle

    return hostile.program(
        hostile.named("__torch__", "M"), pickle.EMPTY_TUPLE, pickle.NEWOBJ, pickle.EMPTY_DICT, pickle.MARK,
        *attributes, pickle.SETITEMS, pickle.BUILD,
    )  # fmt: skip


def tensor(numel: int, shape: int, stride: int = 1, key: str = "0", offset: int = 0) -> bytes:
    import pickle
    import struct

    def integer(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    return b"".join([
        hostile.named("torch._utils", "_rebuild_tensor_v2"), pickle.MARK, pickle.MARK, hostile.text("storage"),
        hostile.named("torch", "FloatStorage"), hostile.text(key), hostile.text("cpu"), integer(numel), pickle.TUPLE,
        pickle.BINPERSID, integer(offset), integer(shape), pickle.TUPLE1, integer(stride), pickle.TUPLE1,
        pickle.NEWFALSE, hostile.named("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE, pickle.TUPLE,
        pickle.REDUCE,
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("more_than_it_has", [tensor(4, 1 << 30, stride=0)], "claims more numbers"),
        ("other_size", [tensor(1 << 20, 1 << 20)], "not as many as it says"),
        ("behind_the_end", [tensor(4, 4, offset=3)], "out of bounds"),
        ("far_apart", [tensor(4, 4, stride=99)], "out of bounds"),
        ("below_zero", [tensor(4, -1)], "refused"),
        ("absent", [tensor(4, 4, key="99")], "no item named"),
        ("elsewhere", [tensor(4, 4, key="../data.pkl")], "no item named"),
        ("shared", [tensor(4, 4), tensor(4, 4)], "share their numbers"),
    ],
)
def test_tensors_that_lie(name: str, data: list[bytes], words: str, archive: Path, tmp_path: Path) -> None:
    named = [part for number, each in enumerate(data) for part in (hostile.text(f"t{number}"), each)]
    file = with_pickle(archive, tmp_path / "lie.pt", module(*named), {"data/0": bytes(16)})
    with pytest.raises((ConversionError, UnsafeCheckpointError), match=words) as raised:
        read_torchscript(file)
    assert "\n" not in raised.value.message


def test_what_is_sound_is_read(archive: Path, tmp_path: Path) -> None:
    numbers = torch.tensor([1.0, 2.0, 3.0, 4.0]).numpy().tobytes()
    file = with_pickle(
        archive, tmp_path / "good.pt", module(hostile.text("a"), tensor(4, 2, stride=2, offset=1)), {"data/0": numbers}
    )
    assert read_torchscript(file)["a"].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_archives(share: float, archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ConversionError):
        convert_checkpoint(tmp_path / "cut.pt")


def test_compressed_numbers(archive: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(archive) as source,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ConversionError, match="is compressed"):
        read_torchscript(tmp_path / "small.pt")


IN_OPEN_CLIP = """
import sys, torch, warnings
warnings.simplefilter("ignore")
from open_clip.openai import load_openai_model
from safetensors.torch import load_file, save_file
given = load_file(sys.argv[2])
model = load_openai_model(sys.argv[1], precision="fp32", device="cpu").eval()
with torch.no_grad():
    found = {"images": model.encode_image(given["pixels"], normalize=True),
             "texts": model.encode_text(given["tokens"], normalize=True)}
save_file({name: tensor.contiguous() for name, tensor in found.items()}, sys.argv[3])
"""


@pytest.mark.numeric
@pytest.mark.skipif(
    find_spec("open_clip") is None, reason="needs `pip install --no-deps open_clip_torch` and `pip install regex tqdm`"
)
@pytest.mark.parametrize("kind", VISIONS)
def test_open_clip_makes_the_same_of_an_archive(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = save_archive(tmp_path / "clip.pt", kind).config
    side = config.vision.image_size
    given = {"pixels": torch.randn(3, 3, side, side), "tokens": model_tokens(3)}
    save_file(given, tmp_path / "given.safetensors")
    paths = [str(HELPERS / "torchvision_stand_in"), str(HELPERS.parents[1])]
    files = ("clip.pt", "given.safetensors", "found")
    finished = subprocess.run(
        [sys.executable, "-c", IN_OPEN_CLIP, *(str(tmp_path / name) for name in files)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    found, model = load_file(tmp_path / "found"), convert_checkpoint(tmp_path / "clip.pt").model
    close(model.encode_image(given["pixels"]), found["images"], "unit rows in float32", atol=1e-5)
    close(model.encode_text(given["tokens"]), found["texts"], "unit rows in float32", atol=1e-5)
