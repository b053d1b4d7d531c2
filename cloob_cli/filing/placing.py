"""One file to another place: copied, linked or moved, never over another file; and back."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from pathlib import Path

from cloob_cli.atomic_files import creating, rename_new
from cloob_cli.filing.undo_file import Mode, Place, absolute_text
from cloob_cli.path_text import path_of, path_text


def plan(mode: Mode, source: Path, target: Path) -> Place:
    """The action that `carry_out` does."""
    link = old_link = None
    if mode == "symlink":
        link = absolute_text(source)
    elif mode == "move" and source.is_symlink():
        # A relative link would lead elsewhere from its new place.
        text = os.readlink(source)
        old_link, link = path_text(Path(text)), absolute_text(source.parent / text)
    return Place(mode=mode, source=absolute_text(source), target=absolute_text(target), link=link, old_link=old_link)


def carry_out(action: Place) -> None:
    """Do what stands in an action.

    Raises:
        FileExistsError: there is something at the target.
        OSError: no room, no permission, no such link on this file system; nothing is left at the target.
    """
    source, target = path_of(action.source), path_of(action.target)
    match action.mode:
        case "copy":
            _copy(source, target)
        case "hardlink":
            os.link(os.path.realpath(source), target)
        case "symlink":
            assert action.link is not None
            os.symlink(path_of(action.link), target)
        case "move":
            _move(source, target, action.link)


def already_there(mode: Mode, source: Path, target: Path) -> bool:
    """True where an earlier run put just this file at `target`, or where that is its own place."""
    if _same_place(source, target):
        return True
    try:
        if mode == "symlink":
            return target.is_symlink() and os.path.samefile(source, target)
        if mode == "hardlink":
            return not target.is_symlink() and os.path.samefile(source, target)
        return mode == "copy" and not target.is_symlink() and filecmp.cmp(source, target, shallow=False)
    except OSError:
        return False


def take_back(action: Place) -> str | None:
    """Undo an action that was done, begun or not done; None, or why it cannot be undone."""
    source, target = path_of(action.source), path_of(action.target)
    if not os.path.lexists(target):
        if action.mode == "move" and not os.path.lexists(source):
            return "is no longer there"
        return None
    if action.mode == "move":
        return _move_back(source, target, action.old_link)
    if _same_place(source, target):  # a damaged file: the one name that there is must not go
        return "is kept: it is the original"
    if not os.path.lexists(source):
        return f"is kept: its original {action.source} is no longer there"
    ours = already_there(action.mode, source, target)
    if action.mode == "symlink":  # one link may lead through another
        ours = target.is_symlink() and os.readlink(target) == str(path_of(action.link or ""))
    if not ours:
        return "is kept: it changed since, or is another file"
    target.unlink()
    return None


def _same_place(one: Path, other: Path) -> bool:
    """True for two paths to one name in one folder, whatever links lead there."""
    return one.name == other.name and os.path.realpath(one.parent) == os.path.realpath(other.parent)


def _copy(source: Path, target: Path, sync: bool = False) -> None:
    with creating(target) as temporary:
        shutil.copyfile(source, temporary)
        if sync:
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
        shutil.copystat(source, temporary)


def _move(source: Path, target: Path, link: str | None) -> None:
    if link is not None:
        times = os.lstat(source)
        os.symlink(path_of(link), target)
        _set_times(target, times)
        source.unlink()
        return
    try:
        rename_new(source, target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        _copy(source, target, sync=True)
        source.unlink()


def _move_back(source: Path, target: Path, old_link: str | None) -> str | None:
    if os.path.lexists(source):
        if not os.path.samefile(source, target) and not filecmp.cmp(source, target, shallow=False):
            return f"is kept: there is another file at {source}"
        target.unlink()  # the move was begun and not ended
        return None
    source.parent.mkdir(parents=True, exist_ok=True)
    _move(target, source, old_link)
    return None


def _set_times(link: Path, times: os.stat_result) -> None:
    if os.utime in os.supports_follow_symlinks:
        os.utime(link, ns=(times.st_atime_ns, times.st_mtime_ns), follow_symlinks=False)
