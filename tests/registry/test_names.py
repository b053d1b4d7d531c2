"""The names of entries: borne by the entries' own models, and by nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from file_server import serving

from cloob_cli import assets
from cloob_cli.checkpoint.folder import README_FILE, WEIGHTS_FILE
from cloob_cli.errors import CloobError, RegistryError, UnknownModelError
from cloob_cli.registry import entries, install, inventory, paths
from cloob_cli.registry.bundle import MANIFEST
from cloob_cli.registry.publish import bundle_model
from cloob_cli.registry.resolve import find_model, resolve

GOLDEN = Path(__file__).parents[1] / "golden"
NAME_OF_AN_ENTRY = "cloob-vit-b-16-laion400m-32ep"
NAMES = [NAME_OF_AN_ENTRY, assets.BUNDLED_MODEL, "Cloob-RN50-YFCC"]


def renamed_bundle(model_folder: Path, name: str, path: Path) -> Path:
    """A valid bundle of the folder, with a manifest that says another name."""
    bundle_model(str(model_folder), path)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    manifest = json.loads(members[0][1]) | {"name": name}
    text = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for info, data in ((tarfile.TarInfo(MANIFEST), text), *members[1:]):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_this_disk_takes_a_name(cloob: Callable[..., Any], model_folder: Path, name: str) -> None:
    done = cloob("zoo", "add", str(model_folder), "--name", name)
    assert done.returncode == 1
    assert "is the name of a model of the zoo" in done.stderr
    assert "--name" in done.stderr
    run = model_folder.parent / name
    model_folder.rename(run)
    for target in (run, run / WEIGHTS_FILE):
        assert cloob("zoo", "pull", str(target), *(["--name", name] if target.is_file() else [])).returncode == 1
    assert inventory.installed_models() == []


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_of_a_bundle_takes_no_name(model_folder: Path, tmp_path: Path, name: str) -> None:
    path = renamed_bundle(model_folder, name, tmp_path / "x.tar")
    with pytest.raises(RegistryError, match="is the name of a model of the zoo"):
        install.pull(resolve(str(path)))
    with pytest.raises(RegistryError, match="is the name of a model of the zoo"):
        install.plan(resolve(str(path)), install.Options())
    assert inventory.installed_models() == []
    assert install.pull(resolve(str(path), name="mine")) == paths.installed_folder("mine")


def test_a_repository_and_an_address_take_no_name() -> None:
    for name in NAMES:
        for target in (f"hf://anyone/{name}", f"https://example.com/{name}.pt", f"hf://anyone/{name}@main"):
            with pytest.raises(RegistryError, match="is the name of a model of the zoo"):
                resolve(target)
            assert resolve(target, name="mine").name == "mine"
    with pytest.raises(RegistryError):
        resolve("hf://anyone/x", name=NAME_OF_AN_ENTRY)
    with pytest.raises(RegistryError):
        resolve("cloob-rn50-yfcc", name=NAME_OF_AN_ENTRY)
    assert resolve("cloob-rn50-yfcc", name="mine").name == "mine"


def test_another_revision_than_the_entries_is_another_model() -> None:
    japanese = entries.find_entry("japanese-cloob-vit-b-16")
    repository = f"hf://{japanese.source.repository}"
    assert resolve(repository).name == japanese.name
    with pytest.raises(RegistryError):
        resolve(f"{repository}@{'0' * 40}")
    other = resolve(f"{repository}@{'0' * 40}", name="other")
    assert (other.entry, str(other)) == (japanese, f"{repository}@{'0' * 40}")


def test_the_shipped_files_may_bear_their_name_also_from_a_bundle(tmp_path: Path) -> None:
    shipped = assets.bundled_folder(assets.BUNDLED_MODEL)
    bundle_model(assets.BUNDLED_MODEL, tmp_path / "x.tar")
    copy = Path(shutil.copytree(shipped, tmp_path / assets.BUNDLED_MODEL))
    for target in (tmp_path / "x.tar", copy):
        assert resolve(str(target)).name == assets.BUNDLED_MODEL
    (copy / README_FILE).write_text("another\n")
    with pytest.raises(RegistryError):
        resolve(str(copy))


def test_the_default_is_the_shipped_model_whatever_is_installed_under_its_name(model_folder: Path) -> None:
    shutil.copytree(model_folder, paths.installed_folder(assets.BUNDLED_MODEL))
    shipped = assets.bundled_folder(assets.BUNDLED_MODEL)
    assert find_model() == find_model(assets.BUNDLED_MODEL) == shipped


def test_a_folder_here_is_not_taken_for_a_model_of_the_zoo(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    model_folder.rename(model_folder.with_name(NAME_OF_AN_ENTRY))
    with pytest.raises(UnknownModelError, match="is not installed"):
        find_model(NAME_OF_AN_ENTRY)
    assert find_model(f"./{NAME_OF_AN_ENTRY}") == Path(NAME_OF_AN_ENTRY)


def test_convert_takes_no_name(cloob: Callable[..., Any], tmp_path: Path) -> None:
    done = cloob("zoo", "convert", str(GOLDEN / "mljku_vit"), "-o", str(tmp_path / NAME_OF_AN_ENTRY))
    assert done.returncode == 1
    assert "is the name of a model of the zoo" in done.stderr
    assert not (tmp_path / NAME_OF_AN_ENTRY).exists()


def test_the_list_does_not_change_after_all_attempts(cloob: Callable[..., Any], model_folder: Path) -> None:
    before = cloob("zoo", "list", "--json").stdout
    with serving(**{f"{NAME_OF_AN_ENTRY}.tar": b"x"}) as server:
        attempts = [f"{server.url}/{NAME_OF_AN_ENTRY}.tar", f"hf://anyone/{NAME_OF_AN_ENTRY}", str(model_folder)]
        for target in attempts:
            with pytest.raises(CloobError):
                install.pull(resolve(target, name=NAME_OF_AN_ENTRY))
        assert server.requests == []
    assert cloob("zoo", "list", "--json").stdout == before


def test_every_entry_of_a_bundled_model_lists_all_its_files() -> None:
    for entry in entries.all_entries():
        if entry.source.bundled:
            folder = assets.bundled_weights_folder() / entry.name
            found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
            assert entry.files == found
