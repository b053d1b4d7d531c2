"""An entry's whole way: an https address with and without a published hash, a certificate, a checkpoint, a model."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import trustme
from file_server import Fault, FileServer, serving
from margins import close
from safetensors.torch import load_file

from cloob_cli import assets, load
from cloob_cli.errors import ChecksumError, DownloadError
from cloob_cli.registry import install, paths
from cloob_cli.registry.events import Event
from cloob_cli.registry.http import RetryPolicy, remote_size
from cloob_cli.registry.inventory import all_models, install_record
from cloob_cli.registry.pinned_hashes import pinned_hash
from cloob_cli.registry.resolve import resolve

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = {"mljku": GOLDEN / "mljku_rn" / "checkpoint.pt", "crowsonkb": GOLDEN / "crowsonkb" / "checkpoint.pkl"}
QUICK = install.Options(retry_policy=RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.02, stall_seconds=1))


def inline(value: object) -> str:
    """A value of JSON as a value of TOML (which has no null)."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items() if each is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[FileServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    files = {path.name: path.read_bytes() for path in CHECKPOINTS.values()}
    with serving(context, **files) as running:
        yield running


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture
def entry(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    monkeypatch.setattr(assets, "zoo_folder", lambda: zoo)

    def write(format: str, **source: str) -> None:
        url = f"{server.url}/{CHECKPOINTS[format].name}"
        lines = ['name = "golden"', 'summary = "s"', 'architecture = "a"', 'data = "d"', 'license = "MIT"']
        lines += ["image_size = 64", "embed_dim = 24", "[source]", f'format = "{format}"', f'url = "{url}"']
        lines += [f'{key} = "{value}"' for key, value in source.items()]
        config = json.loads(CHECKPOINTS[format].with_name("config.json").read_text())
        (zoo / "golden.toml").write_text("\n".join([*lines, f"config = {inline(config)}"]))

    return write


@pytest.mark.numeric
@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("format", CHECKPOINTS)
def test_an_entry_becomes_a_model_that_computes_what_its_original_does(entry: Callable[..., None], format: str) -> None:
    entry(format)
    folder = install.pull(resolve("golden"), QUICK)
    expected = load_file(CHECKPOINTS[format].with_name("expected.safetensors"))
    features = expected["image_features" if format == "mljku" else "image_features.gelu_tanh"]
    with torch.no_grad():
        found = load("golden", device="cpu").encode_image(expected["images"])
    features = torch.nn.functional.normalize(features, dim=-1)
    close(found, features, "unit rows in float32 through a dozen layers", atol=1e-5)
    assert "license: mit" in (folder / "README.md").read_text()
    (entry,) = all_models()
    assert (entry.name, entry.state, entry.license) == ("golden", "installed", "MIT")


@pytest.mark.usefixtures("trusting")
def test_a_published_hash_is_held(entry: Callable[..., None], server: FileServer) -> None:
    data = CHECKPOINTS["mljku"].read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    entry("mljku", sha256=digest)
    assert install_record(install.pull(resolve("golden"), QUICK))["published_hash"] is True
    shutil.rmtree(paths.installed_folder("golden"))
    server.faults = [Fault(corrupt_at=1000)]
    with pytest.raises(ChecksumError, match=digest) as caught:
        install.pull(resolve("golden"), QUICK)
    assert "another name can have it: --name NAME --sha256 " in str(caught.value.hint)


@pytest.mark.usefixtures("trusting")
def test_the_address_of_an_entry_is_the_entry(entry: Callable[..., None], server: FileServer) -> None:
    entry("mljku")
    url = f"{server.url}/checkpoint.pt"
    assert install.pull(resolve(url), QUICK) == paths.installed_folder("golden")
    assert pinned_hash(url) == hashlib.sha256(CHECKPOINTS["mljku"].read_bytes()).hexdigest()


@pytest.mark.usefixtures("trusting")
def test_a_redirect_to_plain_http_is_refused(entry: Callable[..., None], server: FileServer) -> None:
    entry("mljku")
    with serving(**{"x.pt": b"x"}) as plain:
        server.faults = [Fault(location=f"{plain.url}/x.pt")]
        with pytest.raises(DownloadError, match="plain http"):
            install.pull(resolve("golden"), QUICK)


def test_a_certificate_that_nobody_vouches_for_is_refused(entry: Callable[..., None], server: FileServer) -> None:
    entry("mljku")
    notices: list[Event] = []
    with pytest.raises(DownloadError, match=r"(?i)certificate is not trusted here"):
        install.pull(resolve("golden"), QUICK, notices.append)
    assert server.served_bytes == 0
    assert notices == [], "it was tried once"
    with pytest.raises(DownloadError, match="certificate is not trusted here"):
        remote_size(f"{server.url}/checkpoint.pt")
