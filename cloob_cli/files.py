"""Writing files so that nobody ever sees half of one: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on any error."""
    with replacing_together([path]) as [temporary]:
        yield temporary


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The same for files that belong together: all of them appear, or none does.

    Where the body deletes a temporary file, its target goes too: a file of an earlier run that has no new
    counterpart (there were no failures this time) must not stay beside the new ones.
    """
    temporaries: list[Path] = []
    try:
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Noted before it exists: Ctrl-C may come at any moment.
            temporaries.append(path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial"))
            os.close(os.open(temporaries[-1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield list(temporaries)
        for temporary in filter(Path.exists, temporaries):
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())  # private until it is whole; a result is an ordinary file
        for temporary, path in zip(temporaries, paths, strict=True):
            if temporary.exists():
                os.replace(temporary, path)
            else:
                Path(path).unlink(missing_ok=True)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: fill the yielded one; it takes the place of `path` in one rename.

    An existing `path` is moved aside first and removed only after the new one stands in its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    aside = temporary.with_suffix(".replaced")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())  # safetensors, too, writes files that only their owner may read
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            if aside.exists():
                os.replace(aside, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("r+b") as stream:  # Windows refuses to sync a handle that cannot write
        os.fsync(stream.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
