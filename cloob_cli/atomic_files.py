"""Write files atomically: under a temporary name in the same folder, then a rename.

A temporary file `.NAME.cloob-RANDOM.partial` is locked while its process lives. A process that is killed leaves it
behind, unlocked: the next one that writes into the same folder removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from cloob_cli.file_locks import claimed, locked_file, locked_folder
from cloob_cli.joint_rename import ASIDE, exchange, finish, is_marker, marker_of

_PARTIAL = ".partial"
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.cloob-(?P<token>[0-9a-f]{8})\.(partial|replaced)", re.DOTALL)
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}
_SHORT = 40  # bytes of a file's name that stand in the name of a temporary file that may be anything


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on any error.

    Where `path` is a link, the file that it leads to is replaced and the link stays.

    Raises:
        IsADirectoryError: `path` is a folder; raised before the body runs.
    """
    with replacing_together([path]) as [temporary]:
        yield temporary


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Replace files that belong together: all of them appear, or none does.

    Where the body deletes a temporary file, its target goes too: a file of an earlier run that has no new
    counterpart (there were no failures this time) must not stay beside the new ones.

    Raises:
        OSError: a full disk, say; it names the file that was asked for.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    _refuse_folders(targets)
    folders = list(dict.fromkeys(target.parent for target in targets))
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(*folders)
    token = secrets.token_hex(4)
    temporaries = [_temporary(target, token) for target in targets]
    try:
        with naming(paths, temporaries), ExitStack() as locks:
            for temporary in temporaries:
                locks.enter_context(locked_file(temporary))
            yield list(temporaries)
            for temporary in filter(Path.exists, temporaries):
                _sync(temporary)
                temporary.chmod(0o666 & ~_umask())  # private until it is whole; a result is an ordinary file
            if os.name != "posix":
                locks.close()  # Windows renames no open file
            _refuse_folders(targets)
            marker = marker_of(temporaries[0]) if len(targets) > 1 else None
            with locked_file(marker) if marker else nullcontext():
                exchange(temporaries, targets, marker)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextmanager
def creating(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` to be filled; it gets the name `path` whole, or not at all.

    Abandoned files in the folder are not looked for: `remove_abandoned` does that once for many calls.

    Raises:
        FileExistsError: there is something at `path`, a link that leads nowhere included, and not `overwrite`.
    """
    short = path.name.encode("utf-8", "surrogateescape")[:_SHORT].decode("utf-8", "ignore")  # of a longest name
    temporary = _temporary(path.with_name(short), secrets.token_hex(4))
    try:
        with ExitStack() as locks:
            locks.enter_context(locked_file(temporary))
            yield temporary
            if os.name != "posix":
                locks.close()  # Windows renames no open file
            if overwrite:
                _sync(temporary)
                os.replace(temporary, path)
            else:
                rename_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file within a file system, and never over another one.

    Raises:
        FileExistsError: there is something at `target`.
    """
    if os.name != "posix":
        os.rename(source, target)  # which refuses an existing target there
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as problem:
        if problem.errno in {errno.EXDEV, *_NO_ROOM}:
            raise
        # A file system without hard links has no such rename: look first.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)
    else:
        source.unlink()


@contextmanager
def replacing_folder(path: Path, durable: bool = True) -> Iterator[Path]:
    """Replace a folder: the yielded one is filled by the body and takes the place of `path` in one rename.

    An existing `path` is moved aside first and removed only after the new one stands in its place.

    Args:
        durable: the files are on the disk before the folder has its name, so that a power cut leaves no empty ones.
            That takes milliseconds for each file: not for thousands of small ones.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    temporary = _temporary(path, secrets.token_hex(4))
    aside = temporary.with_suffix(ASIDE)
    try:
        with locked_folder(temporary):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o666 & ~_umask())  # safetensors, too, writes files that only their owner may read
                    if durable:
                        _sync(file)
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


def existing_folder(path: Path) -> Path:
    """The path itself where it is there, or the nearest folder above it; at last the root, there or not."""
    # `os.path` takes what may not be looked at for missing, of which `Path.exists` makes an error.
    above = [path, *path.absolute().parents]
    return next((folder for folder in above if os.path.exists(folder)), above[-1])


def is_unfinished(name: str) -> bool:
    """True for the name of a file that is not finished, or of one that was moved aside for it."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_abandoned(*folders: Path) -> None:
    """Remove unfinished files of killed processes from folders, and restore those that they had moved aside.

    Where all of them were finished, and only some had their names yet, the others get theirs; so folders whose files
    are replaced together are named together.
    """
    for folder in folders:
        _finish_exchanges(folder)
    for folder in folders:
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    groups: dict[str, dict[Path, Path]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _UNFINISHED.fullmatch(entry.name):
                    groups.setdefault(match["token"], {})[folder / entry.name] = folder / match["name"]
    except OSError:  # may not be listed: then there is nothing that we could remove either
        return
    for originals in groups.values():
        partials = [path for path in originals if path.suffix == _PARTIAL]
        with ExitStack() as locks:
            if all(locks.enter_context(claimed(path)) for path in partials):
                for path, original in originals.items():
                    if path.suffix == ASIDE and not os.path.lexists(original):
                        _restore(path, original)  # killed between two renames
                    else:
                        _discard(path)


def _finish_exchanges(folder: Path) -> None:
    try:
        with os.scandir(folder) as entries:
            markers = [folder / entry.name for entry in entries if is_marker(entry.name)]
    except OSError:  # may not be listed
        return
    for marker in markers:
        with claimed(marker) as abandoned:
            if abandoned:
                finish(marker)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` (a hard link), or a copy of it where the file system cannot do that.

    Only for a source whose contents nobody changes: both names stand for one file.
    """
    source = source.resolve()  # a link to a symbolic link would end with what that points to
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _temporary(target: Path, token: str) -> Path:
    return target.with_name(f".{target.name}.cloob-{token}{_PARTIAL}")


@contextmanager
def naming(paths: Sequence[Path], temporaries: Sequence[Path] = ()) -> Iterator[None]:
    """Make errors of writing name the file that was asked for (the first, where none is named), not a temporary one."""
    known = dict(zip(map(str, temporaries), paths, strict=False))
    try:
        yield
    except OSError as problem:
        if problem.errno in _NO_ROOM and (problem.filename is None or str(problem.filename) in known):
            path = known.get(str(problem.filename), paths[0])
            raise OSError(problem.errno, os.strerror(problem.errno), str(path)) from problem
        raise


def _discard(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError:  # an unfinished file is no reason to fail
        pass


def _restore(aside: Path, original: Path) -> None:
    try:
        os.replace(aside, original)
    except OSError:
        pass


def _refuse_folders(targets: Sequence[Path]) -> None:
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))


def _sync(path: Path) -> None:
    with path.open("r+b") as stream:  # Windows refuses to sync a handle that cannot write
        os.fsync(stream.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
