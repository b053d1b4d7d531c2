"""`cloob doctor`, and the one judgment that it makes: a GPU that this torch cannot use."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from closed_folder import close_folder
from command_line import cloob_here

from cloob_cli import __version__, assets, diagnosis


def test_json_holds_what_a_report_needs(tmp_path: Path) -> None:
    done = cloob_here("doctor", "--json", cwd=tmp_path, CLOOB_HOME=str(tmp_path / "zoo"))
    found = json.loads(done.stdout)
    assert found["versions"]["cloob"] == __version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["used"]["device"].split(":")[0] in {"cpu", "cuda", "mps"}
    assert found["folders"]["installed models"]["path"] == str(tmp_path / "zoo")
    assert found["folders"]["installed models"]["free_bytes"] > 0
    assert found["environment"]["CLOOB_HOME"] == str(tmp_path / "zoo")
    assert set(found["decoders"]) >= {"webp", "libjpeg-turbo", "avif", "heif"}


def test_the_table_says_the_same(tmp_path: Path) -> None:
    done = cloob_here("doctor", cwd=tmp_path, CLOOB_HOME=str(tmp_path / "zoo"))
    assert done.returncode == 0
    said = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert said["torch"] == version("torch")
    assert said["installed models"].startswith(str(tmp_path / "zoo"))


def test_the_default_model_is_shown_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    home = str(tmp_path / "zoo")

    def said(**env: str) -> tuple[dict[str, str], list[str]]:
        found = json.loads(cloob_here("doctor", "--json", cwd=tmp_path, CLOOB_HOME=home, **env).stdout)
        return found["default_model"], [warning for warning in found["warnings"] if "model" in warning.split()]

    assert said() == ({"name": assets.BUNDLED_MODEL, "chosen_by": "nobody: it is in the package"}, [])
    model, [warning] = said(CLOOB_MODEL="cloob-xs-pictogram")
    assert model == {"name": "cloob-xs-pictogram", "chosen_by": "CLOOB_MODEL"}
    assert warning.startswith("CLOOB_MODEL names a model that is not there")
    assert f"did you mean '{assets.BUNDLED_MODEL}'?" in warning
    assert "cloob zoo pull cloob-rn50-yfcc" in said(CLOOB_MODEL="cloob-rn50-yfcc")[1][0]
    assert "not a model folder" in said(CLOOB_MODEL=str(tmp_path))[1][0]
    assert said(CLOOB_MODEL="hf://org/repo")[1] == []  # nothing is downloaded to find out
    table = cloob_here("doctor", cwd=tmp_path, CLOOB_HOME=home, CLOOB_MODEL="nonsense")
    assert "default model\tnonsense (chosen by CLOOB_MODEL)" in table.stdout.splitlines()
    assert "warning: CLOOB_MODEL names a model that is not there: unknown model 'nonsense'" in table.stderr


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "not" / "made"
    monkeypatch.setattr(diagnosis.os, "access", lambda path, mode: Path(path) != tmp_path)
    done = cloob_here("doctor", cwd=tmp_path, CLOOB_HOME=str(home))
    said = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert said["installed models"].endswith("not made yet, read-only)")
    assert f"warning: {home} cannot be written" in done.stderr
    assert "CLOOB_HOME" in done.stderr


def test_a_home_that_may_not_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    home = closed / "home"
    home.mkdir(parents=True)
    close_folder(closed, monkeypatch)
    monkeypatch.setattr(diagnosis.os, "access", lambda path, mode: Path(path) != closed)
    done = cloob_here("doctor", cwd=tmp_path, CLOOB_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert f"warning: {home} cannot be written" in done.stderr


def test_decoders_are_what_pillow_can_open(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert diagnosis.decoders()["png"]
    if diagnosis.decoders()["webp"]:
        Image.new("RGB", (4, 4)).save(tmp_path / "a.webp")
        with Image.open(tmp_path / "a.webp") as image:
            image.load()


def fake_torch(available: bool, cuda: str | None, hip: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(is_available=lambda: available),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True)),
    )


@pytest.mark.parametrize(
    ("gpu", "available", "cuda", "words"),
    [
        (True, False, None, "built without CUDA"),
        (True, False, "13.0", "driver is older"),
        (True, True, "13.0", None),
        (False, False, None, None),
    ],
)
def test_a_gpu_that_this_torch_cannot_use_is_told(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, available: bool, cuda: str | None, words: str | None
) -> None:
    monkeypatch.setattr(diagnosis, "_has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(diagnosis.sys, "platform", "linux")
    said = diagnosis.unusable_gpu(fake_torch(available, cuda, hip="6"))
    assert (said is None) if words is None else (said is not None and words in said)


@pytest.mark.parametrize(
    ("major", "minor", "built_for", "runs"),
    [
        (9, 0, {"sm_80", "sm_90"}, True),
        (8, 9, {"sm_80", "sm_90"}, True),  # an earlier minor of the same major
        (7, 0, {"sm_75", "sm_80"}, False),
        (12, 0, {"sm_90", "compute_90"}, True),  # PTX is translated for later GPUs
        (12, 0, {"sm_80", "sm_90a"}, False),
        (10, 0, {"sm_100"}, True),
    ],
)
def test_which_builds_run_on_which_gpu(major: int, minor: int, built_for: set[str], runs: bool) -> None:
    assert diagnosis._runs_on(major, minor, built_for) is runs
