"""Repositories of open_clip and transformers on the Hub: loaded from its cache, and installed without a second copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import open_clip_config, save_open_clip, tiny_clip
from hub_server import Hub, sha256

from cloob_cli import load
from cloob_cli.checkpoint.folder import WEIGHTS_FILE
from cloob_cli.convert.transformers_names import to_transformers
from cloob_cli.registry import paths
from cloob_cli.registry.entries import find_entry

Cloob = Callable[..., Any]
TOWER = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TRANSFORMERS = {
    "model_type": "clip", "projection_dim": 24,
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8},
    "text_config": TOWER | {"max_position_embeddings": 16},
}  # fmt: skip
WEIGHTS, OLD_WEIGHTS = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


@pytest.fixture
def clip(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """The files of org/clip, which has its model in three forms, as LAION's repositories have."""
    from safetensors.torch import save

    config = open_clip_config(quick_gelu=True)
    folder = save_open_clip(tmp_path / "source", tiny_clip(), config)
    torch.save(tiny_clip().state_dict(), folder / OLD_WEIGHTS)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["config.json"] = json.dumps({"model_type": "clip"}).encode()
    files["model.safetensors"] = save(to_transformers(tiny_clip().state_dict()))
    files["pytorch_model.bin"] = b"the same once more"
    hub.repositories["org/clip"] = files
    return files


def same_weights(name: str) -> bool:
    found, expected = load(name, device="cpu", dtype="fp32").state_dict(), tiny_clip().state_dict()
    return all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_loaded_from_the_hub_in_its_cache(
    hub: Hub, clip: dict[str, bytes], cloob: Cloob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same_weights("hf://org/clip")
    assert load("hf://org/clip", device="cpu").config.name == "clip"
    asked = {request.rsplit("/", 1)[1] for request in hub.requests if "resolve" in request}
    assert asked == {"open_clip_config.json", WEIGHTS}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same_weights("hf://org/clip")


def test_installed_weights_are_the_file_in_the_hub_s_cache(hub: Hub, clip: dict[str, bytes], cloob: Cloob) -> None:
    done = cloob("zoo", "pull", "hf://org/clip", "--name", "mine", "--sha256", sha256(clip[WEIGHTS]))
    assert done.returncode == 0, done.stderr
    folder = paths.installed_folder("mine")
    assert (folder / WEIGHTS_FILE).stat().st_nlink == 2
    assert not (folder / WEIGHTS_FILE).is_symlink()
    assert (folder / WEIGHTS_FILE).read_bytes() == clip[WEIGHTS]
    assert same_weights("mine")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["source"] == {"format": "open_clip", "origin": "hf://org/clip", "sha256": sha256(clip[WEIGHTS])}
    assert config["inv_tau"] == 87.5
    assert cloob("zoo", "verify", "mine", "--deep").returncode == 0
    # The cache keeps its file when the model goes.
    assert cloob("zoo", "rm", "mine", "-y").returncode == 0
    assert same_weights("hf://org/clip")


def test_a_file_system_without_links_gets_a_copy(
    hub: Hub, clip: dict[str, bytes], cloob: Cloob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("cloob_cli.atomic_files.os.link", refuse)
    assert cloob("zoo", "pull", "hf://org/clip", "--name", "mine").returncode == 0
    assert (paths.installed_folder("mine") / WEIGHTS_FILE).stat().st_nlink == 1
    assert same_weights("mine")


@pytest.mark.parametrize(
    ("missing", "fetched"),
    [
        ([WEIGHTS], {"open_clip_config.json", OLD_WEIGHTS}),
        ([WEIGHTS, OLD_WEIGHTS], {"config.json", "model.safetensors", "open_clip_config.json"}),
        (["open_clip_config.json"], {"config.json", "model.safetensors"}),
    ],
)
def test_the_next_best_form(
    hub: Hub, clip: dict[str, bytes], cloob: Cloob, missing: list[str], fetched: set[str]
) -> None:
    clip["config.json"] = json.dumps(TRANSFORMERS).encode()
    for name in missing:
        del clip[name]
    done = cloob("zoo", "pull", "hf://org/clip", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert {request.rsplit("/", 1)[1] for request in hub.requests if "resolve" in request} == fetched
    assert same_weights("mine")
    assert (paths.installed_folder("mine") / WEIGHTS_FILE).stat().st_nlink == 1


def test_our_own_form_is_linked_as_well(hub: Hub, cloob: Cloob) -> None:
    assert cloob("zoo", "pull", "hf://org/tiny", "--name", "mine").returncode == 0
    folder = paths.installed_folder("mine")
    assert {path.name: path.stat().st_nlink for path in folder.iterdir() if path.stat().st_nlink > 1} == {
        WEIGHTS_FILE: 2
    }


def test_a_folder_of_one_s_own_is_copied(clip: dict[str, bytes], cloob: Cloob, tmp_path: Path) -> None:
    assert cloob("zoo", "add", str(tmp_path / "source"), "--name", "mine").returncode == 0
    assert (tmp_path / "source" / WEIGHTS).stat().st_nlink == 1
    assert same_weights("mine")


def test_a_repository_without_weights(hub: Hub, cloob: Cloob) -> None:
    hub.repositories["org/nothing"] = {"config.json": b'{"model_type": "siglip"}', "flax_model.msgpack": b"x"}
    done = cloob("zoo", "path", "hf://org/nothing")
    assert done.returncode == 1
    assert "has no model.safetensors, and none of open_clip_model.safetensors" in done.stderr


def test_another_program_s_model_is_refused(hub: Hub, cloob: Cloob) -> None:
    hub.repositories["org/siglip"] = {"config.json": b'{"model_type": "siglip"}', "model.safetensors": b"x"}
    for command in ("pull", "show"):
        done = cloob("zoo", command, "hf://org/siglip")
        assert done.returncode in (1, 2)
        assert "the model type 'siglip' of transformers is not supported" in done.stderr


def test_only_a_model_folder_is_given_away(clip: dict[str, bytes], cloob: Cloob, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    for command in (("bundle", str(folder), "-o", str(tmp_path / "b.tar")), ("push", str(folder), "org/new")):
        done = cloob("zoo", *command)
        assert done.returncode == 2
        assert "is in open_clip's form" in done.stderr
        assert "cloob zoo add" in done.stderr


def test_such_a_folder_as_the_default_model(clip: dict[str, bytes], cloob: Cloob, tmp_path: Path) -> None:
    assert cloob("zoo", "default", str(tmp_path / "source")).returncode == 0
    done = cloob("doctor", "--json")
    assert "is not a model folder" not in done.stdout
    assert json.loads(done.stdout)["default_model"]["name"] == str(tmp_path / "source")


@pytest.mark.parametrize(
    "name", ["clip-rn50-openai", "clip-vit-b-32-openai", "clip-vit-b-32-laion2b", "clip-vit-b-16-datacomp-xl"]
)
def test_an_entry_is_pulled_in_its_form(name: str, hub: Hub, clip: dict[str, bytes], cloob: Cloob) -> None:
    source = find_entry(name).source
    if source.format == "transformers":
        described = json.dumps(TRANSFORMERS).encode()
        clip = {"config.json": described, "model.safetensors": clip["model.safetensors"]}
    elif name.endswith("datacomp-xl"):  # it has a .bin alone
        del clip[WEIGHTS]
    assert source.repository is not None
    hub.repositories[source.repository] = clip
    done = cloob("zoo", "pull", name)
    assert done.returncode == 0, done.stderr
    assert same_weights(name)
    readme = (paths.installed_folder(name) / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in readme
    assert "ImageNet" in readme


def test_convert_takes_a_repository(hub: Hub, clip: dict[str, bytes], cloob: Cloob, tmp_path: Path) -> None:
    done = cloob("zoo", "convert", "hf://org/clip", "-o", str(tmp_path / "ours"))
    assert done.returncode == 0, done.stderr
    assert same_weights(str(tmp_path / "ours"))
    assert (tmp_path / "ours" / WEIGHTS_FILE).stat().st_nlink == 1
    config = json.loads((tmp_path / "ours/config.json").read_text(encoding="utf-8"))
    assert config["source"] == {"format": "open_clip", "origin": "hf://org/clip"}
