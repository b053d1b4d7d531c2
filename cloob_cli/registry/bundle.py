"""A model in one file, for machines without network: an uncompressed tar with a manifest of hashes first."""

from __future__ import annotations

import hashlib
import io
import json
import operator
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cloob_cli.atomic_files import replacing, sha256_of
from cloob_cli.errors import ChecksumError, RegistryError
from cloob_cli.version import __version__

MANIFEST = "cloob-bundle.json"
_LARGEST_MANIFEST = 1 << 20
_CHUNK = 1 << 20
_INVALID = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)  # of tarfile, with hostile headers


def write_bundle(folder: Path, name: str, names: list[str], target: Path) -> None:
    """Write the named files of a model folder into one file at `target`."""
    files = {file: {"sha256": sha256_of(folder / file), "bytes": (folder / file).stat().st_size} for file in names}
    manifest = json.dumps({"cloob_bundle": 1, "name": name, "version": __version__, "files": files}, indent=2).encode()
    with replacing(target) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
        for file in names:
            with (folder / file).open("rb") as stream:
                tar.addfile(_member(file, files[file]["bytes"]), stream)  # type: ignore[arg-type]


def is_bundle(path: Path) -> bool:
    """True where a file begins like a bundle."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
            return first is not None and first.name == MANIFEST
    except (*_INVALID, OSError):
        return False


def bundle_name(path: Path) -> str:
    """The name of the model in a bundle.

    Raises:
        RegistryError: its manifest is invalid.
    """
    with _opened(path) as tar:
        return str(_manifest(path, tar)["name"])


def bundle_hashes(path: Path) -> dict[str, str]:
    """The sha256 of every file that a bundle says it holds; `extract_bundle` holds the files to them.

    Raises:
        RegistryError: its manifest is invalid.
    """
    with _opened(path) as tar:
        return {name: entry["sha256"] for name, entry in _manifest(path, tar)["files"].items()}


def extract_bundle(path: Path, folder: Path, allowed: list[str]) -> None:
    """Put the files of a bundle into `folder`; every byte is checked against the manifest.

    Only plain files that the manifest names and `allowed` lists are written, by their bare names, and never more bytes
    than it says; all of them together are no larger than the bundle itself.

    Raises:
        RegistryError: it is no bundle, or names files that a model does not have.
        ChecksumError: a file differs from the manifest.
    """
    with _opened(path) as tar:
        files = _manifest(path, tar)["files"]
        foreign = sorted(set(files) - set(allowed))
        if foreign:
            raise RegistryError(f"{path} holds {foreign[0]!r}, which no model folder has: refused")
        missing = set(files)
        while (member := tar.next()) is not None:
            if not member.isreg() or member.name not in missing:
                raise RegistryError(f"{path} holds {member.name!r}, which its manifest does not name: refused")
            missing.remove(member.name)
            size = files[member.name]["bytes"]
            if member.issparse() or member.size != size:  # a sparse member may claim any size
                raise RegistryError(
                    f"{path} holds {member.size:,} bytes of {member.name}, where its manifest says {size:,}: refused"
                )
            stream = tar.extractfile(member)
            assert stream is not None  # it is a regular file
            found = _copy(stream, folder / member.name, size)
            if found != files[member.name]["sha256"]:
                raise ChecksumError(
                    f"{path}: {member.name} is damaged: sha256 {found}, expected {files[member.name]['sha256']}",
                    "copy the bundle again",
                )
        if missing:
            raise RegistryError(f"{path} ends before {min(missing)!r}", "copy the bundle again")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except _INVALID as problem:
        raise RegistryError(f"{path} is not a valid bundle ({problem})", "copy the bundle again") from None


def _manifest(path: Path, tar: tarfile.TarFile) -> dict[str, Any]:
    first = tar.next()
    stream = tar.extractfile(first) if first and first.name == MANIFEST and first.isreg() else None
    if first is None or stream is None or first.size > _LARGEST_MANIFEST:
        raise RegistryError(f"{path} is not a bundle: it has no {MANIFEST}")
    try:
        manifest = json.loads(stream.read())
        entries = {str(name): entry for name, entry in manifest["files"].items()}
        hashes = {name: str(entry["sha256"]) for name, entry in entries.items()}
        sizes = {name: operator.index(entry["bytes"]) for name, entry in entries.items()}
        model = str(manifest["name"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RegistryError(f"{path}: {MANIFEST} is invalid, refused") from None
    if sum(sizes.values()) > path.stat().st_size:
        raise RegistryError(f"{path} says that it holds more bytes than it has: refused")
    return {"name": model, "files": {name: {"sha256": hashes[name], "bytes": sizes[name]} for name in entries}}


def _member(name: str, size: int) -> tarfile.TarInfo:
    # No owner, time or mode of this machine: equal models give equal bundles.
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _copy(source: IO[bytes], target: Path, size: int) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        while size > 0 and (block := source.read(min(size, _CHUNK))):
            digest.update(block)
            out.write(block)
            size -= len(block)
    return digest.hexdigest()
