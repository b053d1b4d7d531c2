"""From a target to an installed model, or to an error that harms nothing."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from file_server import Fault, FileServer, serving
from margins import close
from safetensors import SafetensorError
from safetensors.torch import load_file

from cloob_cli import load
from cloob_cli.checkpoint.folder import KEPT_FILES, WEIGHTS_FILE, read_config
from cloob_cli.errors import (
    ChecksumError,
    CloobError,
    ConversionError,
    DiskSpaceError,
    DownloadError,
    InputError,
    MissingConfigurationError,
    MissingExtraError,
    ModelFolderError,
    RegistryError,
    UnknownModelError,
    UnsafeCheckpointError,
    UsageError,
)
from cloob_cli.registry import install, inventory, paths
from cloob_cli.registry.bundle import MANIFEST
from cloob_cli.registry.events import Event, Notice
from cloob_cli.registry.fill_folder import convert_to_folder
from cloob_cli.registry.http import RetryPolicy
from cloob_cli.registry.inventory import INSTALL_RECORD, install_record
from cloob_cli.registry.locks import is_held, lock_name
from cloob_cli.registry.paths import downloads_folder, pinned_hashes_file, quarantine_folder
from cloob_cli.registry.pinned_hashes import pinned_hash
from cloob_cli.registry.publish import bundle_model
from cloob_cli.registry.remove import leftovers
from cloob_cli.registry.resolve import Origin, resolve
from cloob_cli.registry.verify import verify_model

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.02, stall_seconds=0.5, progress_bytes=1)
OPTIONS = install.Options(retry_policy=QUICK)


@pytest.fixture
def bundle(model_folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "tiny.tar"
    bundle_model(str(model_folder), target)
    return target


@pytest.fixture
def server(bundle: Path) -> Iterator[FileServer]:
    with serving(**{"tiny.tar": bundle.read_bytes()}) as running:
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def no_half_models() -> bool:
    return not [path for path in (paths.home() / "models").glob(".*") if path.exists()]


# ------------------------------------------------------------------ the good ways


def test_a_local_folder(model_folder: Path) -> None:
    folder = install.pull(resolve(str(model_folder)))
    assert folder == paths.installed_folder("tiny")
    assert load("tiny", device="cpu").config == read_config(model_folder)
    assert not [check for check in verify_model("tiny") if check.state != "right"]


def test_only_the_files_of_a_model_are_taken(model_folder: Path) -> None:
    (model_folder / "evil.sh").write_text("echo")
    (model_folder / "sub").mkdir()
    folder = install.pull(resolve(str(model_folder)))
    assert {path.name for path in folder.iterdir()} <= {*KEPT_FILES, INSTALL_RECORD}


def test_the_folder_of_a_training_run_gives_its_model(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my-run").mkdir()
    model_folder.rename(tmp_path / "my-run" / "model")
    assert install.pull(resolve(str(tmp_path / "my-run"))) == paths.installed_folder("my-run")


def test_a_single_weights_file_with_its_tokenizer_beside_it(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    folder = install.pull(resolve(str(model_folder / "model.safetensors"), name="one"))
    assert (folder / "config.json").is_file()
    assert load("one", device="cpu").config.name == "tiny"


def test_a_bundle_made_here_installs_under_its_own_name(bundle: Path, model_folder: Path) -> None:
    folder = install.pull(resolve(str(bundle)))
    assert folder.name == "tiny"
    original, copy = (load_file(at / WEIGHTS_FILE) for at in (model_folder, folder))
    assert original.keys() == copy.keys()
    assert all(torch.equal(original[name], copy[name]) for name in original)


def test_equal_models_give_equal_bundles(model_folder: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        bundle_model(str(model_folder), tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.numeric
def test_a_checkpoint_is_converted(tmp_path: Path) -> None:
    source = GOLDEN / "mljku_vit"
    folder = install.pull(resolve(str(source / "checkpoint.pt"), name="vit"))
    expected = load_file(source / "expected.safetensors")
    model = load("vit", device="cpu")
    with torch.no_grad():
        image, text = model.encode_image(expected["images"]), model.encode_text(expected["tokens"])
    for ours, features in ((image, expected["image_features"]), (text, expected["text_features"])):
        theirs = torch.nn.functional.normalize(features, dim=-1)
        close(ours, theirs, "unit rows in float32 through a dozen layers", atol=1e-5)
    assert "vit" in (folder / "README.md").read_text()
    assert str(source) not in (folder / "README.md").read_text() + (folder / "config.json").read_text()


def test_an_address(server: FileServer) -> None:
    events: list[Event] = []
    origin = resolve(f"{server.url}/tiny.tar")
    folder = install.pull(origin, OPTIONS, events.append)
    data = server.files["/tiny.tar"]
    digest = hashlib.sha256(data).hexdigest()
    assert load("tiny", device="cpu").config.name == "tiny"
    assert install_record(folder)["sha256"] == digest
    assert pinned_hash(origin.url or "") == digest
    assert any(isinstance(e, Notice) and "first use" in e.text and digest in e.text for e in events)
    assert not list(downloads_folder().iterdir())


def test_a_second_pull_fetches_nothing(server: FileServer) -> None:
    origin = resolve(f"{server.url}/tiny.tar")
    assert install.pull(origin, OPTIONS) == install.pull(origin, OPTIONS)
    assert len(server.requests) == 1


def test_force_fetches_again(server: FileServer) -> None:
    origin = resolve(f"{server.url}/tiny.tar")
    install.pull(origin, OPTIONS)
    install.pull(origin, install.Options(force=True, retry_policy=QUICK))
    assert len(server.requests) == 2


# ------------------------------------------------------------------ pinned hashes


def test_a_hash_once_pinned_is_held_even_after_removal(server: FileServer, tmp_path: Path) -> None:
    origin = resolve(f"{server.url}/tiny.tar")
    folder = install.pull(origin, OPTIONS)
    shutil.rmtree(folder)
    other = bytearray(server.files["/tiny.tar"])
    other[-3000] ^= 1
    server.files["/tiny.tar"] = bytes(other)
    with pytest.raises(ChecksumError):
        install.pull(origin, OPTIONS)
    assert not folder.exists()


def test_a_file_that_is_no_model_is_not_pinned_and_not_taken_up_again(server: FileServer) -> None:
    good = server.files["/tiny.tar"]
    server.files["/tiny.tar"] = b"<html>please log in</html>" * 100
    origin = resolve(f"{server.url}/tiny.tar")
    with pytest.raises(CloobError) as caught:
        install.pull(origin, OPTIONS)
    assert "quarantined" in str(caught.value.hint)
    assert pinned_hash(origin.url or "") is None
    server.files["/tiny.tar"] = good
    install.pull(origin, OPTIONS)


def test_a_checkpoint_that_lacks_its_configuration_is_kept(
    server: FileServer, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = GOLDEN / "mljku_vit"
    server.files["/vit.pt"] = (folder / "checkpoint.pt").read_bytes()

    def undecided(*arguments: object, **options: object) -> None:
        raise MissingConfigurationError("its number of heads cannot be read", "give it with --config FILE")

    origin = resolve(f"{server.url}/vit.pt")
    with monkeypatch.context() as patched:
        patched.setattr("cloob_cli.convert.convert_checkpoint", undecided)
        with pytest.raises(MissingConfigurationError) as caught:
            install.pull(origin, OPTIONS)
    assert caught.value.hint == "give it with --config FILE"
    spoilt = tmp_path / "wrong.json"
    spoilt.write_text("[]")
    with pytest.raises(ConversionError):  # the wrong configuration is no fault of the file either
        install.pull(origin, install.Options(config=spoilt, retry_policy=QUICK))
    install.pull(origin, install.Options(config=folder / "config.json", retry_policy=QUICK))
    assert server.served_bytes == len(server.files["/vit.pt"])
    assert not quarantine_folder().exists()


def test_an_unreadable_file_of_pinned_hashes_stops_everything(server: FileServer) -> None:
    pinned_hashes_file().parent.mkdir(parents=True, exist_ok=True)
    pinned_hashes_file().write_text("{broken")
    with pytest.raises(RegistryError, match=r"pinned_hashes\.json"):
        install.pull(resolve(f"{server.url}/tiny.tar"), OPTIONS)


def test_a_published_hash_needs_no_pin(server: FileServer) -> None:
    digest = hashlib.sha256(server.files["/tiny.tar"]).hexdigest()
    install.pull(resolve(f"{server.url}/tiny.tar", sha256=digest), OPTIONS)
    assert not pinned_hashes_file().exists()


# ------------------------------------------------------------------ nothing is harmed


BAD_SERVERS = {
    "404": [Fault(status=404)],
    "503": [Fault(status=503)] * 9,
    "cut for ever": [Fault(cut_after=10, ignore_range=True)] * 9,
    "corrupt": [Fault(corrupt_at=20_000)],
}


@pytest.mark.parametrize("faults", BAD_SERVERS.values(), ids=BAD_SERVERS.keys())
def test_a_failed_forced_pull_leaves_the_installed_model(server: FileServer, faults: list[Fault]) -> None:
    digest = hashlib.sha256(server.files["/tiny.tar"]).hexdigest()
    origin = resolve(f"{server.url}/tiny.tar", sha256=digest)
    folder = install.pull(origin, OPTIONS)
    before = contents(folder)
    server.faults = list(faults)
    with pytest.raises((DownloadError, ChecksumError)):
        install.pull(origin, install.Options(force=True, retry_policy=QUICK))
    assert contents(folder) == before
    assert no_half_models()
    load("tiny", device="cpu")


def test_a_full_disk_leaves_the_installed_model(server: FileServer) -> None:
    origin = resolve(f"{server.url}/tiny.tar")
    folder = install.pull(origin, OPTIONS)
    before = contents(folder)
    with pytest.raises(DiskSpaceError):
        install.pull(origin, install.Options(force=True, retry_policy=QUICK, free=lambda at: 1000))
    assert contents(folder) == before


def test_a_disk_that_is_full_while_a_model_is_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def on_a_full_disk(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"x")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", on_a_full_disk)
    with pytest.raises(DiskSpaceError, match="the disk is full") as caught:
        install.pull(resolve(str(GOLDEN / "mljku_vit" / "checkpoint.pt"), name="vit"))
    assert "partial" not in caught.value.message
    with pytest.raises(DiskSpaceError, match="the disk is full"):
        convert_to_folder(GOLDEN / "mljku_vit", tmp_path / "out")
    assert inventory.installed_models() == []
    assert no_half_models()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_invalid_folder_is_not_installed(model_folder: Path, name: str) -> None:
    (model_folder / name).write_bytes((model_folder / name).read_bytes()[:100])
    with pytest.raises((ModelFolderError, ConversionError)) as caught:
        install.pull(resolve(str(model_folder)))
    assert str(model_folder / name) in caught.value.message
    assert "partial" not in f"{caught.value.message} {caught.value.hint}"
    assert inventory.installed_models() == []
    assert no_half_models()


def test_an_interrupted_conversion_leaves_nothing(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cloob_cli.checkpoint.folder.open_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        install.pull(resolve(str(model_folder)))
    assert inventory.installed_models() == []
    assert no_half_models()


def test_a_crash_between_the_two_renames_costs_nothing(server: FileServer) -> None:
    origin = resolve(f"{server.url}/tiny.tar")
    folder = install.pull(origin, OPTIONS)
    before = contents(folder)
    folder.rename(folder.with_name(".tiny.abc123.replaced"))
    assert leftovers() == []
    assert install.pull(origin, OPTIONS) == folder
    assert contents(folder) == before
    assert len(server.requests) == 1
    shutil.copytree(folder, folder.with_name(".tiny.abc123.replaced"))
    assert [removal.path.name for removal in leftovers()] == [".tiny.abc123.replaced"]


def test_another_model_of_the_same_name_is_not_passed_off(model_folder: Path, bundle: Path) -> None:
    install.pull(resolve(str(model_folder)))
    with pytest.raises(RegistryError, match="installed already, from"):
        install.pull(resolve(str(bundle)))


def test_a_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"params": Payload()}))
    with pytest.raises(UnsafeCheckpointError):
        install.pull(resolve(str(tmp_path / "x.pkl")))
    assert not (tmp_path / "ran").exists()
    assert inventory.installed_models() == []


def test_a_missing_extra_does_not_cost_the_download(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise MissingExtraError.of("transformers", "transformers")

    origin = resolve(f"{server.url}/tiny.tar")
    with monkeypatch.context() as patched:
        patched.setattr(install, "fill", missing)
        with pytest.raises(MissingExtraError):
            install.pull(origin, OPTIONS)
    install.pull(origin, OPTIONS)
    assert server.served_bytes == len(server.files["/tiny.tar"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_fifty_random_faults_of_whole_pulls(server: FileServer, seed: int) -> None:
    draw = random.Random(seed)
    size = len(server.files["/tiny.tar"])
    kinds = ("cut_after", "stall_after", "corrupt_at")
    server.faults = [Fault(**{draw.choice(kinds): draw.randrange(size)}) for _ in range(draw.randint(1, 4))]
    clean = all(fault.corrupt_at is None for fault in server.faults)
    origin = resolve(f"{server.url}/tiny.tar", sha256=hashlib.sha256(server.files["/tiny.tar"]).hexdigest())
    for _ in range(8):
        try:
            install.pull(origin, OPTIONS)
            break
        except (DownloadError, ChecksumError):
            assert inventory.installed_models() == []
            assert no_half_models()
    assert not [check for check in verify_model("tiny", deep=True) if check.failed]
    if clean:
        assert server.served_bytes == size


# ------------------------------------------------------------------ bundles that lie


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: object) -> Path:
    with tarfile.open(path, "w") as tar:
        text = json.dumps(manifest).encode()
        for info, data in ((tarfile.TarInfo(MANIFEST), text), *members):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def manifest_of(**files: bytes) -> dict[str, object]:
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return {"cloob_bundle": 1, "name": "evil", "files": listed}


def symlink(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


EVIL_NAMES = ["../evil", "/etc/evil", "..\\evil", "C:\\evil", "a/../../evil", "README.md/../../evil", "evil.sh"]


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("named", [True, False])
def test_a_bundle_cannot_write_outside_of_its_folder(tmp_path: Path, name: str, named: bool) -> None:
    manifest = manifest_of(**{name: b"x"}) if named else manifest_of()
    path = tar_of(tmp_path / "evil.tar", (tarfile.TarInfo(name), b"x"), manifest=manifest)
    with pytest.raises(RegistryError, match="refused"):
        install.pull(resolve(str(path)))
    assert not [found for found in tmp_path.rglob("*evil*") if found != path and "locks" not in found.parts]
    assert no_half_models()


def test_a_bundle_cannot_hold_links(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "evil.tar", (symlink("README.md", "/etc/passwd"), b""), manifest=manifest_of(**{"README.md": b""})
    )
    with pytest.raises(RegistryError, match="refused"):
        install.pull(resolve(str(path)))


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden"])
def test_a_bundle_cannot_choose_a_name_that_leaves_the_zoo(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "evil.tar", manifest=manifest_of() | {"name": name})
    with pytest.raises(UsageError):
        install.pull(resolve(str(path)))


@pytest.mark.parametrize(
    "manifest", [[], {}, {"name": "x"}, {"name": "x", "files": []}, {"name": "x", "files": {"a": 1}}]
)
def test_a_bundle_with_an_invalid_manifest(tmp_path: Path, manifest: object) -> None:
    path = tar_of(tmp_path / "evil.tar", manifest=manifest)
    with pytest.raises(RegistryError):
        install.pull(resolve(str(path)))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_bundle(bundle: Path, share: float) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data[: int(len(data) * share)])
    with pytest.raises((RegistryError, ChecksumError)):
        install.pull(resolve(str(bundle)))
    assert inventory.installed_models() == []


def test_errors_name_the_bundle_and_not_where_it_is_unpacked(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "tokenizer.json").write_text("{}")
    files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    members = [(tarfile.TarInfo(name), data) for name, data in files.items()]
    path = tar_of(tmp_path / "x.tar", *members, manifest=manifest_of(**files))
    with serving(**{"x.tar": path.read_bytes()}) as running:
        for target in (str(path), f"{running.url}/x.tar"):
            with pytest.raises(ModelFolderError) as caught:
                install.pull(resolve(target), OPTIONS)
            assert caught.value.message.startswith(f"{target}/tokenizer.json is not a tokenizer.json")


def test_errors_name_the_address_and_not_where_the_file_is_kept(server: FileServer) -> None:
    server.files["/x.pt"] = b"PK" + bytes(100)
    with pytest.raises(ConversionError) as caught:
        install.pull(resolve(f"{server.url}/x.pt"), OPTIONS)
    assert caught.value.message.startswith(f"{server.url}/x.pt is not a")
    assert "complete" not in caught.value.message


def test_a_bundle_with_a_changed_byte(bundle: Path) -> None:
    data = bytearray(bundle.read_bytes())
    position = data.find(b"ln_final.weight")
    data[position + 200_000] ^= 1
    bundle.write_bytes(bytes(data))
    with pytest.raises(ChecksumError, match=r"model\.safetensors is damaged"):
        install.pull(resolve(str(bundle)))


# ------------------------------------------------------------------ two at once


def test_two_processes_at_once_make_one_download_and_two_successes(server: FileServer) -> None:
    server.pause_seconds = 0.01
    command = [sys.executable, "-m", "cloob_cli", "zoo", "pull", f"{server.url}/tiny.tar", "--name", "tiny"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    assert {out.strip() for out, _ in results} == {str(paths.installed_folder("tiny"))}
    assert server.served_bytes == len(server.files["/tiny.tar"])
    load("tiny", device="cpu")


@pytest.mark.slow
def test_one_address_under_two_names_at_once_makes_two_models(server: FileServer) -> None:
    server.pause_seconds = 0.01
    command = [sys.executable, "-m", "cloob_cli", "zoo", "pull", f"{server.url}/tiny.tar", "--name"]
    started = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    assert inventory.installed_models() == ["one", "two"]
    assert not list(downloads_folder().iterdir())


def test_a_file_is_not_taken_away_while_another_process_works_with_it(server: FileServer) -> None:
    """The same without a race: the file's lock is held for as long as the file is needed."""
    origin = resolve(f"{server.url}/tiny.tar")
    seen: list[bool] = []

    def watch(event: Event) -> None:
        if isinstance(event, Notice) and event.text.startswith("checking"):
            seen.append(is_held(lock_name(origin.url or "")))

    install.pull(origin, OPTIONS, watch)
    assert seen == [True]
    assert not is_held(lock_name(origin.url or ""))


def test_a_killed_pull_is_resumed_by_the_next_one(server: FileServer) -> None:
    server.pause_seconds = 0.02
    url = f"{server.url}/tiny.tar"
    process = subprocess.Popen([sys.executable, "-m", "cloob_cli", "zoo", "pull", url], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while server.served_bytes < 60_000 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    server.pause_seconds = 0.0
    (partial,) = downloads_folder().glob("*.partial")
    kept = partial.stat().st_size
    assert kept > 0
    install.pull(resolve(url), OPTIONS)
    assert server.requests[-1][2] == f"bytes={kept}-"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_pull_killed_at_any_moment_leaves_no_half_model(server: FileServer, seed: int) -> None:
    server.pause_seconds = 0.005
    url = f"{server.url}/tiny.tar"
    process = subprocess.Popen([sys.executable, "-m", "cloob_cli", "zoo", "pull", url], stderr=subprocess.DEVNULL)
    time.sleep(random.Random(seed).uniform(0.3, 5.0))
    process.kill()
    process.wait()
    server.pause_seconds = 0.0
    if "tiny" in inventory.installed_models():
        assert not [check for check in verify_model("tiny", deep=True) if check.failed]
    install.pull(resolve(url), OPTIONS)
    assert not [check for check in verify_model("tiny", deep=True) if check.failed]


# ------------------------------------------------------------------ targets, plans, offline


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("hf://org/My-Model@v1", "My-Model"),
        ("https://example.com/a/b/model_x.pt?token=1", "model_x"),
        ("https://example.com/a/b/m.cloob.tar", "m"),
        ("cloob-rn50-yfcc", "cloob-rn50-yfcc"),
    ],
)
def test_what_a_target_will_be_called(target: str, name: str) -> None:
    assert resolve(target).name == name


def test_a_nearly_right_name_is_suggested() -> None:
    with pytest.raises(UnknownModelError) as caught:
        resolve("cloob-rn50-yfc")
    assert caught.value.hint == "did you mean 'cloob-rn50-yfcc'?"


@pytest.mark.parametrize("target", ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://../x/y"])
def test_references_that_are_none(target: str) -> None:
    with pytest.raises(InputError):
        resolve(target)


def test_a_plan_does_nothing(server: FileServer) -> None:
    plan = install.plan(resolve(f"{server.url}/tiny.tar"), OPTIONS)
    assert (plan.name, plan.present, plan.sha256) == ("tiny", False, None)
    assert plan.download_bytes == len(server.files["/tiny.tar"])
    assert server.served_bytes == 0
    assert not paths.home().exists()


def test_offline_means_offline(server: FileServer) -> None:
    origin = resolve(f"{server.url}/tiny.tar")
    with pytest.raises(DownloadError, match="offline"):
        install.pull(origin, install.Options(offline=True))
    assert server.requests == []
    install.pull(origin, OPTIONS)
    install.pull(origin, install.Options(offline=True))


def test_a_bundled_model_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="lacks the bundled model"):
        install.pull(Origin("nobody", bundled=True))
