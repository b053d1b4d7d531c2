"""A model is held to a hash that was given, published or seen first, wherever the file comes from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer, serving

from cloob_cli import assets
from cloob_cli.checkpoint.folder import WEIGHTS_FILE
from cloob_cli.errors import ChecksumError, RegistryError, UsageError
from cloob_cli.registry import install, inventory, paths
from cloob_cli.registry.http import RetryPolicy
from cloob_cli.registry.inventory import install_record
from cloob_cli.registry.paths import pinned_hashes_file, quarantine_folder
from cloob_cli.registry.pinned_hashes import pin_hash, pinned_hash
from cloob_cli.registry.publish import bundle_model
from cloob_cli.registry.resolve import resolve

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "mljku_vit" / "checkpoint.pt"
OTHER = "0" * 64
QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.02, stall_seconds=0.5, progress_bytes=1)
OPTIONS = install.Options(retry_policy=QUICK)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def bundle(model_folder: Path, tmp_path: Path) -> Path:
    bundle_model(str(model_folder), tmp_path / "tiny.tar")
    return tmp_path / "tiny.tar"


@pytest.fixture
def server(bundle: Path) -> Iterator[FileServer]:
    with serving(**{"tiny.tar": bundle.read_bytes()}) as running:
        yield running


def changed(data: bytes, model_folder: Path) -> bytes:
    """The bundle of another valid model: one with another README."""
    (model_folder / "README.md").write_text("# another\n")
    path = model_folder.parent / "other.tar"
    bundle_model(str(model_folder), path)
    assert path.read_bytes() != data
    return path.read_bytes()


# ------------------------------------------------------------------ a hash that is given


def held_part(target: Path) -> Path:
    return target / WEIGHTS_FILE if target.is_dir() else target


@pytest.mark.parametrize("kind", ["folder", "weights", "bundle", "checkpoint"])
def test_a_given_hash_binds_what_is_on_this_disk(
    cloob: Callable[..., Any], model_folder: Path, bundle: Path, kind: str
) -> None:
    targets = {"folder": model_folder, "weights": model_folder / WEIGHTS_FILE}
    target = (targets | {"bundle": bundle, "checkpoint": CHECKPOINT})[kind]
    done = cloob("zoo", "pull", str(target), "--name", "mine", "--sha256", OTHER)
    assert done.returncode == 1
    assert sha256(held_part(target)) in done.stderr
    assert OTHER in done.stderr
    assert inventory.installed_models() == []
    done = cloob("zoo", "add", str(target), "--name", "mine", "--sha256", sha256(held_part(target)).upper())
    assert done.returncode == 0, done.stderr
    assert install_record(paths.installed_folder("mine"))["sha256"] == sha256(held_part(target))


def test_a_given_hash_binds_the_bundled_model(cloob: Callable[..., Any]) -> None:
    name = assets.BUNDLED_MODEL
    right = sha256(assets.bundled_folder(name) / WEIGHTS_FILE)
    assert cloob("zoo", "pull", name, "--sha256", right).returncode == 0
    for more in ([], ["--dry-run"]):
        done = cloob("zoo", "pull", name, "--sha256", OTHER, *more)
        assert done.returncode == 1
        assert right in done.stderr


def test_a_model_that_is_installed_is_held_to_it_too(model_folder: Path, bundle: Path) -> None:
    install.pull(resolve(str(bundle)))
    install.pull(resolve(str(bundle), sha256=sha256(bundle)))
    for action in (install.pull, install.plan):
        with pytest.raises(ChecksumError, match=sha256(bundle)):
            action(resolve(str(bundle), sha256=OTHER), OPTIONS)


def test_the_published_hash_of_an_entry_is_not_overruled_under_its_name() -> None:
    name = "cloob-vit-b-16-laion400m-32ep"
    with pytest.raises(UsageError, match="published sha256"):
        resolve(name, sha256=OTHER)
    assert resolve(name, name="mine", sha256=OTHER).sha256 == OTHER


# ------------------------------------------------------------------ what changed upstream


def test_the_new_hash_of_a_changed_file_is_accepted_once_and_remembered(
    cloob: Callable[..., Any], server: FileServer, model_folder: Path
) -> None:
    url = f"{server.url}/tiny.tar"
    assert cloob("zoo", "pull", url, "-q").returncode == 0
    server.files["/tiny.tar"] = changed(server.files["/tiny.tar"], model_folder)
    new = hashlib.sha256(server.files["/tiny.tar"]).hexdigest()
    for _ in range(2):
        done = cloob("zoo", "pull", url, "--force", "-q")
        assert done.returncode == 1
        assert f"the same command with --sha256 {new}" in done.stderr
    assert cloob("zoo", "pull", url, "--force", "-q", "--sha256", new).returncode == 0
    assert pinned_hash(url) == new
    assert cloob("zoo", "pull", url, "--force", "-q").returncode == 0


def test_the_hash_of_the_first_use_stays_until_another_is_accepted() -> None:
    first, second = "1" * 64, "2" * 64
    pin_hash("https://example.org/a.pt", first)
    pin_hash("https://example.org/a.pt", second)
    assert pinned_hash("https://example.org/a.pt") == first
    pin_hash("https://example.org/a.pt", second, replace=True)
    assert pinned_hash("https://example.org/a.pt") == second


def test_what_is_accepted_is_not_remembered_where_it_is_no_model(server: FileServer) -> None:
    url = f"{server.url}/tiny.tar"
    first = install_record(install.pull(resolve(url), OPTIONS))["sha256"]
    server.files["/tiny.tar"] = b"<html>"
    digest = hashlib.sha256(b"<html>").hexdigest()
    with pytest.raises(RegistryError):
        install.pull(resolve(url, sha256=digest), install.Options(force=True, retry_policy=QUICK))
    assert pinned_hash(url) == first


# ------------------------------------------------------------------ dry runs


def said(done: Any) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t") for line in done.stdout.splitlines())


def test_a_dry_run_says_what_the_file_will_be_held_to(
    cloob: Callable[..., Any], server: FileServer, model_folder: Path
) -> None:
    url = f"{server.url}/tiny.tar"
    dry = ("zoo", "pull", "--dry-run")
    assert said(cloob(*dry, url))["sha256"] == "not published: pinned on first use"
    assert said(cloob(*dry, url, "--sha256", OTHER))["sha256"] == OTHER
    local = said(cloob(*dry, str(model_folder)))
    assert (local["sha256"], local["download"]) == ("not given: taken as it is", "none, it is on this disk")
    assert said(cloob(*dry, str(model_folder), "--sha256", OTHER))["sha256"] == OTHER
    hub = said(cloob(*dry, "hf://org/name", "--offline"))
    assert hub["sha256"] == "not given: whatever the Hub lists"
    assert "first use" not in said(cloob(*dry, assets.BUNDLED_MODEL))["sha256"]
    install.pull(resolve(url), OPTIONS)
    there = said(cloob(*dry, url))
    assert (there["sha256"], there["download"]) == (pinned_hash(url), "none, it is installed")


def test_a_dry_run_knows_the_name_in_a_bundle_and_what_stands_there_already(
    cloob: Callable[..., Any], model_folder: Path, bundle: Path
) -> None:
    moved = bundle.rename(bundle.with_name("moved.tar"))
    assert said(cloob("zoo", "pull", str(moved), "--dry-run"))["name"] == "tiny"
    install.pull(resolve(str(model_folder)))
    done = cloob("zoo", "pull", str(moved), "--dry-run")
    assert done.returncode == 1
    assert "installed already, from" in done.stderr


# ------------------------------------------------------------------ a file fetched by hand


@pytest.fixture
def with_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    monkeypatch.setattr(assets, "zoo_folder", lambda: zoo)

    def write(image_size: int, place: str = 'url = "https://example.com/checkpoint.pt"', **source: str) -> None:
        lines = ['name = "golden"', 'summary = "s"', 'architecture = "a"', 'data = "d"', f"image_size = {image_size}"]
        lines += ["embed_dim = 24", "[source]", 'format = "mljku"', place]
        lines += [f'{key} = "{value}"' for key, value in source.items()]
        (zoo / "golden.toml").write_text("\n".join(lines))

    return write


def image_size() -> int:
    return int(json.loads(CHECKPOINT.with_name("config.json").read_text())["image_resolution"])


def test_a_file_fetched_by_hand_is_held_to_the_entry(
    cloob: Callable[..., Any], with_entry: Callable[..., None], tmp_path: Path
) -> None:
    with_entry(image_size(), sha256=sha256(CHECKPOINT))
    mine = tmp_path / "by hand.pt"
    mine.write_bytes(b"something else")
    done = cloob("zoo", "pull", "golden", "--from", str(mine))
    assert done.returncode == 1
    assert sha256(CHECKPOINT) in done.stderr
    assert mine.read_bytes() == b"something else"
    assert not quarantine_folder().exists()
    shutil.copyfile(CHECKPOINT, mine)
    shutil.copyfile(CHECKPOINT.with_name("config.json"), tmp_path / "config.json")
    dry = said(cloob("zoo", "pull", "golden", "--from", str(mine), "--dry-run"))
    assert (dry["sha256"], dry["download"]) == (sha256(CHECKPOINT), "none, it is on this disk")
    done = cloob("zoo", "pull", "golden", "--from", str(mine), "--offline")
    assert done.returncode == 0, done.stderr
    assert mine.is_file()
    record = install_record(paths.installed_folder("golden"))
    assert (record["origin"], record["published_hash"]) == ("https://example.com/checkpoint.pt", True)
    assert not pinned_hashes_file().exists()
    assert "is installed already" in cloob("zoo", "pull", "golden").stderr  # it came from where the entry says


def test_without_a_published_hash_the_first_file_counts_and_has_to_fit_the_entry(
    cloob: Callable[..., Any], with_entry: Callable[..., None], tmp_path: Path
) -> None:
    with_entry(image_size() + 32)
    done = cloob("zoo", "pull", "golden", "--from", str(CHECKPOINT))
    assert done.returncode == 1
    assert "this is not golden" in done.stderr
    assert inventory.installed_models() == []
    (tmp_path / "zoo" / "golden.toml").unlink()

    from cloob_cli.registry import entries

    entries.read_entry.cache_clear()
    with_entry(image_size())
    done = cloob("zoo", "pull", "golden", "--from", str(CHECKPOINT))
    assert done.returncode == 0, done.stderr
    assert "first use" in done.stderr
    assert pinned_hash("https://example.com/checkpoint.pt") == sha256(CHECKPOINT)
    other = tmp_path / "other.pt"
    other.write_bytes(CHECKPOINT.read_bytes() + b"\0")
    assert cloob("zoo", "pull", "golden", "--from", str(other), "--force").returncode == 1


def test_a_repository_fetched_by_hand_needs_a_hash(
    cloob: Callable[..., Any], with_entry: Callable[..., None], tmp_path: Path
) -> None:
    with_entry(image_size(), place='repository = "org/golden"')
    folder = tmp_path / "clone"
    shutil.copytree(CHECKPOINT.parent, folder)
    done = cloob("zoo", "pull", "golden", "--from", str(folder))
    assert done.returncode == 2
    assert "--sha256" in done.stderr
    assert cloob("zoo", "pull", "golden", "--from", str(folder), "--sha256", OTHER).returncode == 1
    done = cloob("zoo", "pull", "golden", "--from", str(folder), "--sha256", sha256(CHECKPOINT))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("target", "at_hand"),
    [
        ("cloob-xs-pictograms", "tiny.tar"),
        ("tiny", "tiny.tar"),
        ("cloob-rn50-yfcc", "tiny.tar"),
        ("cloob-rn50-yfcc", "tiny"),
        ("cloob-rn50-yfcc", "nothing.pt"),
    ],
)
def test_what_cannot_be_the_file_of_a_target(
    cloob: Callable[..., Any], bundle: Path, target: str, at_hand: str
) -> None:
    done = cloob("zoo", "pull", target, "--from", at_hand)
    assert done.returncode == 2, done.stderr
    assert inventory.installed_models() == []
