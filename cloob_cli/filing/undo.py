"""Take back what an undo file says, last action first."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloob_cli.atomic_files import remove_abandoned
from cloob_cli.errors import Failure
from cloob_cli.filing import placing, sidecars
from cloob_cli.filing.undo_file import AnyAction, MakeFolder, Place, read_undo_file
from cloob_cli.path_text import path_of
from cloob_cli.text_format import os_reason


@dataclass
class Undone:
    """The number of files that are as before, and those that could not be brought back, with reasons."""

    files: int = 0
    kept: list[Failure] = field(default_factory=list)


def undo(path: Path, on_action: Callable[[], None] | None = None) -> Undone:
    """Undo every action of the file at `path`, and delete the file where nothing is left of them.

    What somebody changed since is kept and named; folders that hold something else stay. A second call goes on where
    a first one could not.

    Raises:
        InputError: not an undo file; nothing was undone.
    """
    header, actions = read_undo_file(path)
    undone = Undone()
    for action in reversed(actions):
        if isinstance(action, MakeFolder):
            _remove_folder(path_of(action.path))
        elif reason := _take_back(action):
            undone.kept.append(Failure(_name(action), reason))
        else:
            undone.files += 1
        if on_action:
            on_action()
    if not undone.kept:
        path.unlink()
        for folder in reversed(header.folders):
            _remove_folder(path_of(folder))
    return undone


def _take_back(action: AnyAction) -> str | None:
    try:
        if isinstance(action, Place):
            return placing.take_back(action)
        assert not isinstance(action, MakeFolder)
        return sidecars.take_back(action)
    except OSError as problem:
        return f"cannot be undone: {os_reason(problem)}"


def _name(action: AnyAction) -> str:
    return action.target if isinstance(action, Place) else action.path


def _remove_folder(folder: Path) -> None:
    remove_abandoned(folder)
    try:
        os.rmdir(folder)
    except OSError:  # something of somebody else is in it, or it is gone
        pass
