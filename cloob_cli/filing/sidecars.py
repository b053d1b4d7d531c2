"""Sidecar files: NAME.xmp beside NAME.jpg, which photo managers read keywords from. The image is never touched."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cloob_cli.atomic_files import creating
from cloob_cli.data.image_folder import passed_over, suffixes
from cloob_cli.errors import DataError
from cloob_cli.filing.undo_file import Write, absolute_text
from cloob_cli.filing.xmp import LARGEST, add_keywords
from cloob_cli.path_text import path_of


class Stems:
    """The images of folders by their names without suffix, to know where NAME.xmp would belong to two of them.

    A folder is listed when it is first asked for; images that cannot be read here (camera raw) count too.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, set[str]]] = {}

    def add(self, image: Path) -> None:
        """Note an image that is new in its folder."""
        self._names(image).add(image.name)

    def is_shared(self, image: Path) -> bool:
        return len(self._names(image) | {image.name}) > 1

    def _names(self, image: Path) -> set[str]:
        if image.parent not in self._folders:
            listed = self._folders[image.parent] = {}
            kinds = suffixes() | passed_over().keys()
            for name in os.listdir(image.parent):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in kinds:
                    listed.setdefault(stem.casefold(), set()).add(name)
        return self._folders[image.parent].setdefault(image.stem.casefold(), set())


def sidecar_of(image: Path, stems: Stems) -> Path:
    """The sidecar of an image, whether it exists or not: NAME.xmp, or NAME.jpg.xmp.

    The longer name is taken where it exists, and where two images are called NAME.
    """
    with_suffix = image.with_name(f"{image.name}.xmp")
    if os.path.lexists(with_suffix) or stems.is_shared(image):
        return with_suffix
    return image.with_suffix(".xmp")


def named_like(sidecar: Path, image: Path, target: Path) -> Path:
    """The path that the sidecar of `image` has beside its new place `target`."""
    return target.with_name(f"{target.name}.xmp") if sidecar.stem == image.name else target.with_suffix(".xmp")


def plan_write(
    sidecar: Path, keywords: Sequence[Sequence[str]], merge_from: Path | None = None
) -> tuple[Write, bytes] | None:
    """The action that adds keywords to a sidecar, with its new bytes; None where it has them all.

    Args:
        merge_from: the sidecar whose contents a new one begins with.

    Raises:
        DataError: an existing sidecar that is not XMP, or a hostile one; it is left as it is.
        OSError: it cannot be read.
    """
    before, status = _read(sidecar)
    start = before
    if before is None and merge_from is not None:
        start = _read(merge_from)[0]
    try:
        after = add_keywords(start, keywords)
    except DataError as problem:
        raise DataError(f"its sidecar {sidecar.name} is left alone: {problem.message}") from None
    if after == before:
        return None
    action = Write(
        path=absolute_text(sidecar),
        before=None if before is None else base64.b64encode(before).decode(),
        after=hashlib.sha256(after).hexdigest(),
        mode=None if status is None else stat.S_IMODE(status.st_mode),
        mtime_ns=None if status is None else status.st_mtime_ns,
    )
    return action, after


def carry_out(action: Write, after: bytes) -> None:
    """Write a sidecar's new bytes; its permissions stay, and a link stays one."""
    path = Path(os.path.realpath(path_of(action.path)))
    # A new one is not waited for until it is on the disk: there is nothing that a power cut could take.
    with creating(path, overwrite=action.before is not None) as temporary:
        temporary.write_bytes(after)
        temporary.chmod(0o666 & ~_umask() if action.mode is None else action.mode)


def take_back(action: Write) -> str | None:
    """Restore a sidecar; None, or why it cannot be done."""
    path = path_of(action.path)
    current = path.read_bytes() if path.is_file() else None
    before = None if action.before is None else base64.b64decode(action.before)
    if current == before:
        return None
    if current is None:
        return "is no longer there"
    if hashlib.sha256(current).hexdigest() != action.after:
        return "is kept: it changed since"
    if before is None:
        path.unlink()
        return None
    carry_out(action, before)
    if action.mtime_ns is not None:
        os.utime(path, ns=(action.mtime_ns, action.mtime_ns))
    return None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _read(path: Path) -> tuple[bytes | None, os.stat_result | None]:
    if not os.path.lexists(path):
        return None, None
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"its sidecar {path.name} is left alone: not a regular file")
    with path.open("rb") as stream:
        return stream.read(LARGEST + 1), status
