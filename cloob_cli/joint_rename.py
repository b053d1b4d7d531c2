"""Rename several finished files to their places as one step that a kill at any moment leaves done or to be done.

Before the first rename a marker `.NAME.cloob-RANDOM.commit` lists all of them. Who finds it later finishes the step.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

ASIDE = ".replaced"
_COMMIT = ".commit"
_MARKER = re.compile(r"\..+\.cloob-[0-9a-f]{8}\.commit", re.DOTALL)


def exchange(temporaries: Sequence[Path], targets: Sequence[Path], marker: Path | None) -> None:
    """Rename every temporary file to its target, or delete the target of one that is not there.

    After an error all targets are as before. After a kill `finish` does the rest.

    Args:
        marker: an empty file, `marker_of` the first temporary one, which is deleted in the end; None for one target.
    """
    begun: list[tuple[Path, Path, bool]] = []
    try:
        if marker:
            _write_marker(marker, temporaries, targets)
        for temporary, target in zip(temporaries, targets, strict=True):
            aside = temporary.with_suffix(ASIDE)
            begun.append((target, aside, target.exists()))
            if marker and target.exists():
                _link_or_rename(target, aside)
            _move(temporary, target)
    except BaseException:
        _remove(marker)  # first: from here on nobody must finish it
        for target, aside, existed in begun:
            if aside.exists():
                os.replace(aside, target)
            elif not existed:
                target.unlink(missing_ok=True)
        raise
    finally:
        for _, aside, _ in begun:
            aside.unlink(missing_ok=True)
        _remove(marker)  # last: without it, what lies aside is put back


def marker_of(temporary: Path) -> Path:
    """The marker of a step whose first temporary file this is."""
    return temporary.with_suffix(_COMMIT)


def is_marker(name: str) -> bool:
    """True for the name of a marker."""
    return _MARKER.fullmatch(name) is not None


def finish(marker: Path) -> None:
    """Do what is left of the step that a process began and was killed in, and delete its marker."""
    try:
        steps = json.loads(marker.read_text(encoding="ascii"))
    except (OSError, ValueError):  # killed before the first rename
        steps = []
    try:
        for temporary, target, has_content in steps:
            if not has_content or Path(temporary).exists():
                _move(Path(temporary), Path(target))
            Path(temporary).with_suffix(ASIDE).unlink(missing_ok=True)
        marker.unlink(missing_ok=True)
    except (OSError, ValueError, TypeError):  # the folder may not be written, or somebody else's file has this name
        pass


def _write_marker(marker: Path, temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    pairs = zip(temporaries, targets, strict=True)
    steps = [[str(temporary.absolute()), str(target.absolute()), temporary.exists()] for temporary, target in pairs]
    marker.write_text(json.dumps(steps), encoding="ascii")  # bytes of names that are not UTF-8 become escapes


def _remove(marker: Path | None) -> None:
    if marker:
        try:
            marker.unlink(missing_ok=True)
        except PermissionError:  # Windows deletes no open file: its list is emptied instead
            marker.write_text("[]", encoding="ascii")


def _move(temporary: Path, target: Path) -> None:
    if temporary.exists():
        os.replace(temporary, target)
    else:
        target.unlink(missing_ok=True)


def _link_or_rename(target: Path, aside: Path) -> None:
    try:
        os.link(target, aside)
    except OSError:  # a file system without hard links
        os.replace(target, aside)
