"""A zoo home of its own for every test, and a model so small that it is built in milliseconds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import cloob_here
from hub_server import Hub, hub_serving

from cloob_cli import console
from cloob_cli.checkpoint.folder import save_model
from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.data.tokenizer import Tokenizer, train_bpe

CAPTIONS = ["a red bicycle", "two cats on a roof", "the sea at night", "a bicycle under the roof"]


@pytest.fixture(autouse=True)
def zoo_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installed models, caches and settings go below the test's own folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("CLOOB_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("CLOOB_MODEL", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def cloob(tmp_path: Path, zoo_home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in this process, exit codes and all."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return cloob_here(*arguments, cwd=tmp_path, CLOOB_HOME=str(zoo_home))
        finally:
            console.configure(quiet=False)

    return command


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(CAPTIONS, 540, context_length=12)


def tiny_config(tokenizer: Tokenizer, **changes: object) -> ModelConfig:
    data = {
        "name": "tiny",
        "embed_dim": 16,
        "vision": {"kind": "vit", "image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "heads": 2},
        "text": {"vocab_size": tokenizer.vocab_size, "context_length": 12, "width": 32, "layers": 2, "heads": 2},
        "tokenizer": {"kind": "bpe"},
        "inv_tau": 30.0,
        "scale_hopfield": 8.0,
    }
    return ModelConfig.model_validate(data | changes)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> CloobModel:
    return build(tiny_config(tokenizer), seed=0).eval()


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory, tiny_model: CloobModel, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, tiny_model, tokenizer, card_text="# tiny\n")
    return folder


@pytest.fixture
def model_folder(_saved: Path, tmp_path: Path) -> Path:
    """A valid model folder of the test's own, to be spoilt at will."""
    import shutil

    return Path(shutil.copytree(_saved, tmp_path / "tiny"))


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with hub_serving() as running:
        files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
        running.repositories["org/tiny"] = files | {".gitattributes": b"*", "notes/extra.txt": b"x"}
        # What the client reads from the environment when it is imported; one test below goes that way.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        yield running
