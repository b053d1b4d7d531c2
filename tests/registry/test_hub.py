"""The Hub, through the real huggingface_hub client in a process of its own, against a server on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, sha256

from cloob_cli import load
from cloob_cli.checkpoint.folder import README_FILE, WEIGHTS_FILE, read_config
from cloob_cli.errors import DataError, DownloadError, RegistryError
from cloob_cli.registry import inventory, paths
from cloob_cli.registry.hub import check_inside
from cloob_cli.registry.inventory import install_record
from cloob_cli.training.run_folder import RunFolder, RunLock

Cloob = Callable[..., Any]


def test_the_environment_decides_as_for_every_program_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cloob_cli", "zoo", "path", "hf://org/tiny"]
    given = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "elsewhere"), "HF_TOKEN": "hf_secret"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "elsewhere")
    assert "Bearer hf_secret" in hub.tokens
    asked = len(hub.requests)
    again = subprocess.run(command, env=given | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=120)
    assert again.stdout == done.stdout
    assert len(hub.requests) == asked


def test_pull_load_and_offline(hub: Hub, cloob: Cloob, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cloob("zoo", "pull", "hf://org/tiny", "-q")
    assert (first.returncode, first.stderr) == (0, "")
    folder = Path(first.stdout.strip())
    assert folder == paths.installed_folder("tiny")
    assert install_record(folder)["commit"] == hub.commit("org/tiny")
    assert load("tiny", device="cpu").config == read_config(model_folder)
    assert not any("extra.txt" in request for request in hub.requests)

    # From the Hub's cache alone, as a target of its own and as what other commands take.
    hub.requests.clear()
    again = cloob("zoo", "pull", "hf://org/tiny@main", "--name", "again", "--offline")
    assert again.returncode == 0, again.stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = cloob("zoo", "path", "hf://org/tiny")
    assert (Path(path.stdout.strip()) / WEIGHTS_FILE).is_file(), path.stderr
    assert hub.requests == []


def test_a_revision_that_is_a_commit(hub: Hub, cloob: Cloob) -> None:
    commit = hub.commit("org/tiny")
    done = cloob("zoo", "path", f"hf://org/tiny@{commit}")
    assert Path(done.stdout.strip()).name == commit, done.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("hf://org/nobody", "no repository org/nobody"),
        ("hf://org/tiny@v9", "no revision v9"),
        ("hf://org/locked", "accepted its terms"),
    ],
)
def test_what_is_not_there_is_one_line(hub: Hub, cloob: Cloob, target: str, words: str) -> None:
    hub.repositories["org/locked"] = hub.repositories["org/tiny"]
    hub.gated.add("org/locked")
    done = cloob("zoo", "pull", target)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert inventory.installed_models() == []


def test_a_private_repository_needs_the_token(hub: Hub, cloob: Cloob, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add("org/tiny")
    assert cloob("zoo", "path", "hf://org/tiny").returncode == 1
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = cloob("zoo", "path", "hf://org/tiny")
    assert done.returncode == 0, done.stderr
    assert hub.tokens[-1] == "Bearer hf_secret"


def test_a_given_hash_binds_the_weights_of_a_repository(
    hub: Hub, cloob: Cloob, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = sha256(hub.repositories["org/tiny"][WEIGHTS_FILE])
    done = cloob("zoo", "pull", "hf://org/tiny", "--sha256", "0" * 64)
    assert done.returncode == 1
    assert right in done.stderr
    assert not [request for request in hub.requests if "resolve" in request], "nothing needs to be fetched for that"
    done = cloob("zoo", "pull", "hf://org/tiny", "--sha256", right)
    assert done.returncode == 0, done.stderr
    assert install_record(paths.installed_folder("tiny"))["sha256"] == right
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = cloob("zoo", "pull", "hf://org/tiny", "--name", "again", "--sha256", "0" * 64)
    assert done.returncode == 1
    assert right in done.stderr


def test_a_corrupt_file_is_set_aside(hub: Hub, cloob: Cloob) -> None:
    hub.corrupt = True
    done = cloob("zoo", "pull", "hf://org/tiny")
    assert done.returncode == 1
    assert sha256(hub.repositories["org/tiny"][WEIGHTS_FILE]) in done.stderr
    assert "quarantined" in done.stderr
    hub.corrupt = False
    done = cloob("zoo", "pull", "hf://org/tiny")
    assert done.returncode == 0, done.stderr


def test_files_of_two_commits_never_make_one_model(hub: Hub, cloob: Cloob) -> None:
    """Somebody pushes between the listing and the download: every single file is whole, and right by its own hash."""
    hub.later = {README_FILE: b"# another commit\n"}
    done = cloob("zoo", "pull", "hf://org/tiny")
    assert done.returncode == 1
    assert "hf://org/tiny changed while it was fetched" in done.stderr
    assert inventory.installed_models() == []
    done = cloob("zoo", "pull", "hf://org/tiny")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..\\evil", "C:/evil"])
def test_a_file_list_that_leaves_its_folder_is_refused(hub: Hub, cloob: Cloob, name: str) -> None:
    hub.listed_extra = [name]
    done = cloob("zoo", "pull", "hf://org/tiny")
    assert done.returncode == 1
    assert "outside of its folder" in done.stderr
    assert not [request for request in hub.requests if "resolve" in request]


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "\\\\host\\share\\x", "a\0b", "D:x"])
def test_names_that_leave_a_folder(name: str) -> None:
    with pytest.raises(RegistryError):
        check_inside(name, "the list")


@pytest.mark.parametrize("name", ["config.json", "a/b.txt", "a..b", ".gitattributes"])
def test_names_that_stay(name: str) -> None:
    check_inside(name, "the list")


@pytest.mark.skipif(os.name != "posix", reason="sends itself SIGINT")
def test_a_pull_is_interrupted_at_once_and_says_what_is_kept(hub: Hub, tmp_path: Path) -> None:
    """The server sends nothing more, and the client would wait ten minutes for it."""
    hub.stalled = threading.Event()
    given = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "600"}
    command = [sys.executable, "-m", "cloob_cli", "zoo", "pull", "hf://org/tiny"]
    process = subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert hub.stalled.wait(120)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "the files that came whole are kept, the one that was on its way is not" in said
    cache = Path(os.environ["HF_HOME"])
    assert list(cache.rglob("config.json")), "came whole"
    assert not list(cache.rglob("*.incomplete"))


def test_a_hub_that_is_down(hub: Hub, cloob: Cloob) -> None:
    hub.status = 500
    done = cloob("zoo", "pull", "hf://org/tiny")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own
def test_push_and_pull_back(hub: Hub, cloob: Cloob, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = cloob("zoo", "push", str(model_folder), "me/mine", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(f"{hub.url}/me/mine/commit/")
    assert "me/mine" in hub.private
    assert hub.repositories["me/mine"] == {path.name: path.read_bytes() for path in model_folder.iterdir()}
    back = cloob("zoo", "pull", "hf://me/mine")
    assert back.returncode == 0, back.stderr
    assert load("mine", device="cpu").config == read_config(model_folder)


def test_push_without_a_token_says_what_to_do(hub: Hub, cloob: Cloob, model_folder: Path) -> None:
    done = cloob("zoo", "push", str(model_folder), "me/mine")
    assert done.returncode == 1
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own
def test_push_leaves_the_record_of_this_machine_out(
    hub: Hub, cloob: Cloob, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    cloob("zoo", "add", str(model_folder), "--name", "mine")
    done = cloob("zoo", "push", "mine", "me/mine")
    assert done.returncode == 0, done.stderr
    assert "installed.json" not in hub.repositories["me/mine"]
    assert str(model_folder) not in json.dumps({n: d.decode("latin-1") for n, d in hub.repositories["me/mine"].items()})


def japanese_repositories() -> dict[str, dict[str, bytes]]:
    """rinna's two repositories in their own form, at a small size: transformers' towers and a sentence-piece model."""
    import io

    import sentencepiece
    import torch
    from safetensors.torch import save
    from transformers import RobertaConfig, RobertaModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    vision = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["赤い自転車", "屋根の上の猫", "夜の海", "犬と猫の写真"] * 20),
        model_writer=written,
        vocab_size=23,
        hard_vocab_limit=False,  # releases of sentencepiece differ by one in how many pieces they find here
        user_defined_symbols=["[CLS]", "[PAD]"],
        minloglevel=2,
    )
    text = RobertaConfig(
        vocab_size=23,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=90,
        pad_token_id=4,
    )
    towers = {
        "vision_model": ViTModel(vision, add_pooling_layer=False),
        "text_model": RobertaModel(text, add_pooling_layer=False),
    }
    tensors = {f"{part}.{name}": value for part, tower in towers.items() for name, value in tower.state_dict().items()}
    tensors |= {"visual_projection.weight": torch.randn(16, 32), "text_projection.weight": torch.randn(16, 32)}
    config = {
        "model_type": "cloob",
        "projection_dim": 16,
        "init_inv_tau": 30.0,
        "scale_hopfield": 15.0,
        "vision_config": vision.to_dict(),
        "text_config": text.to_dict(),
    }
    stored = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {
        "rinna/japanese-cloob-vit-b-16": {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": save(stored, {"format": "pt"}),
            "pytorch_model.bin": b"a pickle that nobody needs",
        },
        "rinna/japanese-roberta-base": {
            "spiece.model": written.getvalue(),
            "special_tokens_map.json": b'{"cls_token": "[CLS]", "pad_token": "[PAD]"}',
        },
    }


@pytest.mark.parametrize("target", ["japanese-cloob-vit-b-16", "hf://rinna/japanese-cloob-vit-b-16"])
def test_the_japanese_model_comes_with_the_tokenizer_of_another_repository(hub: Hub, cloob: Cloob, target: str) -> None:
    hub.repositories |= japanese_repositories()
    done = cloob("zoo", "pull", target)
    assert done.returncode == 0, done.stderr
    assert not [request for request in hub.requests if "pytorch_model.bin" in request]
    assert Path(done.stdout.strip()) == paths.installed_folder("japanese-cloob-vit-b-16")
    assert cloob("zoo", "verify", "japanese-cloob-vit-b-16", "--deep").returncode == 0
    model = load("japanese-cloob-vit-b-16", device="cpu")
    assert model.tokenize is not None
    similar = model.encode_text(model.tokenize(["赤い自転車", "夜の海"]))
    assert similar.shape == (2, 16)
    assert read_config(paths.installed_folder("japanese-cloob-vit-b-16")).preprocess.interpolation == "bilinear"


def test_a_data_set_is_fetched_without_what_is_not_needed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloob_cli.registry.datasets import hub_data_set

    files = {"classnames.txt": b"a\nb\n", "test/nshards.txt": b"1", "test/0.tar": b"tar", "train/0.tar": b"more"}
    hub.repositories["org/wds_signs"] = files | {"README.md": b"x"}
    folder = hub_data_set("hf://org/wds_signs", ["test"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"classnames.txt", "test/nshards.txt", "test/0.tar"}
    assert any("/api/datasets/org/wds_signs" in request for request in hub.requests)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_data_set("hf://org/wds_signs", ["test"]) == folder
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.repositories["org/other"] = {"README.md": b"x"}
    with pytest.raises(DataError, match="no tar or parquet file of the split test"):
        hub_data_set("hf://org/other", ["test"])
    with pytest.raises(DownloadError, match="no repository org/nothing"):
        hub_data_set("hf://org/nothing", ["test"])


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub import HfApi, constants

    from cloob_cli.registry.datasets import hub_data_set
    from cloob_cli.registry.http import Hosts

    asked: list[str] = []

    def no_route(self: HfApi, name: str, **_: object) -> None:
        asked.append(name)
        raise httpx2.ConnectError("no route", request=httpx2.Request("GET", f"{constants.ENDPOINT}/api/{name}"))

    monkeypatch.setattr(HfApi, "repo_info", no_route)
    hosts = Hosts()
    for name, said in (("org/a", "no connection"), ("org/b", "cannot be reached")):
        with pytest.raises(DownloadError, match=said):
            hub_data_set(f"hf://{name}", ["test"], hosts=hosts)
    assert asked == ["org/a"]


@pytest.mark.parametrize("state", ["another run", "locked", "something else"])
def test_a_run_folder_that_is_taken_is_told_before_the_model_is_fetched(
    hub: Hub, cloob: Cloob, tmp_path: Path, state: str
) -> None:
    """The Hub has no such model, and is not asked for it."""
    (tmp_path / "pairs").mkdir()
    for name, content in (("0.png", b""), ("0.txt", b"a cat")):
        (tmp_path / "pairs" / name).write_bytes(content)
    text = 'name = "x"\n[model]\ninit = "hf://org/none"\n[data]\ntrain = "pairs"\n[train]\nsteps = 1\nbatch_size = 2\n'
    (tmp_path / "x.toml").write_text(text)
    folder, lock = RunFolder(tmp_path / "run"), RunLock()
    folder.path.mkdir()
    (folder.recipe if state != "something else" else folder.path / "notes.txt").write_text("{}")
    said = {"another run": "already holds a run", "something else": "exists and is not a run's folder"}
    arguments = ["train", "x.toml", "--out", "run"]
    if state == "locked":
        lock.take(folder.path)
        arguments.append("--resume")
    try:
        done = cloob(*arguments)
    finally:
        lock.release()
    assert done.returncode == 2
    assert said.get(state, "another process is training in run") in " ".join(done.stderr.split())
    assert len(done.stderr.splitlines()) == 2, "the error and its hint"
    assert hub.requests == []
