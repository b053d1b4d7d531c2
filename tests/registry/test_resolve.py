"""The meaning of a name, and the folders of the zoo."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloob_cli import assets, load
from cloob_cli.checkpoint.folder import (
    WEIGHTS_FILE,
)
from cloob_cli.errors import CloobError, UnknownModelError
from cloob_cli.registry import inventory, paths
from cloob_cli.registry.resolve import find_model

# ------------------------------------------------------------------ finding


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert paths.home() == tmp_path / "home"
    monkeypatch.delenv("CLOOB_HOME")
    assert paths.home() == tmp_path / "hf" / "cloob"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.home() == tmp_path / "cache" / "huggingface" / "cloob"


def install(name: str, folder: Path) -> Path:
    import shutil

    target = paths.installed_folder(name)
    shutil.copytree(folder, target)
    return target


def test_a_name_comes_before_a_folder_of_that_name(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    assert find_model("tiny") == Path("tiny")
    installed = install("tiny", model_folder)
    assert find_model("tiny") == installed
    assert find_model("./tiny") == Path("tiny")
    assert inventory.installed_models() == ["tiny"]


def test_the_default_model(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inventory.default_model() == assets.BUNDLED_MODEL
    installed = install("mine", model_folder)
    paths.default_file().write_text("mine\n")
    assert find_model(None) == installed
    monkeypatch.setenv("CLOOB_MODEL", str(model_folder))
    assert find_model(None) == model_folder


def test_an_unknown_name_suggests_the_nearest(model_folder: Path) -> None:
    install("my-birds", model_folder)
    with pytest.raises(UnknownModelError) as caught:
        load("my-brids")
    assert caught.value.hint == "did you mean 'my-birds'?"


def test_a_known_name_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(UnknownModelError) as caught:
        load("cloob-rn50-yfcc")
    assert caught.value.hint == "cloob zoo pull cloob-rn50-yfcc"


@pytest.mark.parametrize("name", ["", ".hidden", "../x", "a/b", "..", "~nobody-here/x", "x\0y", "hf://", "hf://a"])
def test_odd_names_are_ordinary_errors(name: str) -> None:
    with pytest.raises(CloobError):
        load(name)


def test_a_file_is_no_model_folder(model_folder: Path) -> None:
    with pytest.raises(UnknownModelError, match="is a file"):
        load(str(model_folder / WEIGHTS_FILE))
