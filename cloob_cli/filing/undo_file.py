"""The undo file: what is about to be done to files, written down before it is done.

JSON Lines, UTF-8. The first line says what the file is; each further one is an action. Actions are on the disk before
they are carried out, so that whatever a full disk or a kill leaves behind can be taken back: an action that stands here
was done, was begun, or was not done. Paths are absolute, as text (`path_text`).

    {"cloob_undo": 1, "made_by": "cloob 0.1.0", "folders": ["/photos/sorted"]}
    {"do": "folder", "path": "/photos/sorted/cat"}
    {"do": "place", "mode": "copy", "source": "/photos/1.jpg", "target": "/photos/sorted/cat/1.jpg", "link": null,
     "old_link": null}
    {"do": "write", "path": "/photos/1.xmp", "before": null, "after": "5f70...", "mode": null, "mtime_ns": null}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from cloob_cli.errors import InputError
from cloob_cli.path_text import path_text
from cloob_cli.strict_model import StrictModel
from cloob_cli.version import __version__

FORMAT = 1
Mode = Literal["copy", "hardlink", "symlink", "move"]


class Header(StrictModel):
    """The first line: `folders` were made for the undo file itself, the outermost first."""

    cloob_undo: int
    made_by: str
    folders: list[str]


class MakeFolder(StrictModel):
    """A folder that was not there."""

    do: Literal["folder"] = "folder"
    path: str


class Place(StrictModel):
    """A file that gets another place.

    `link` is the text of the symbolic link at the target; `old_link` that of a link which is moved.
    """

    do: Literal["place"] = "place"
    mode: Mode
    source: str
    target: str
    link: str | None = None
    old_link: str | None = None


class Write(StrictModel):
    """A small file with new contents: `before` is the old ones in base64, `after` the sha256 of the new."""

    do: Literal["write"] = "write"
    path: str
    before: str | None
    after: str
    mode: int | None
    mtime_ns: int | None


Action = Annotated[MakeFolder | Place | Write, Field(discriminator="do")]
AnyAction = MakeFolder | Place | Write
_ACTION: TypeAdapter[AnyAction] = TypeAdapter(Action)


class UndoFile:
    """An undo file that is written. It appears, with its folder, at the first action.

    Args:
        path: where it is to stand; where there is a file already, a number is added to the name.
    """

    def __init__(self, path: Path) -> None:
        self._wanted = Path(os.path.abspath(path))
        self._handle: int | None = None
        self.path: Path | None = None

    def write(self, actions: Sequence[AnyAction]) -> None:
        """Append actions that are about to be done; they are on the disk when this returns.

        Raises:
            OSError: they could not be written, and so must not be done.
        """
        if not actions:
            return
        lines = "".join(action.model_dump_json() + "\n" for action in actions)
        if self._handle is None:
            lines = self._create() + lines
        assert self._handle is not None
        data = memoryview(lines.encode())
        while data:
            data = data[os.write(self._handle, data) :]
        os.fsync(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> UndoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _create(self) -> str:
        """Create the file and return its first line."""
        made = [folder for folder in [self._wanted.parent, *self._wanted.parent.parents] if not folder.exists()]
        self._wanted.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while self._handle is None:
            path = self._wanted if number == 1 else self._wanted.with_stem(f"{self._wanted.stem}-{number}")
            try:
                self._handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
            except FileExistsError:
                number += 1
        self.path = path
        folders = [path_text(folder) for folder in reversed(made)]
        return Header(cloob_undo=FORMAT, made_by=f"cloob {__version__}", folders=folders).model_dump_json() + "\n"


def read_undo_file(path: Path) -> tuple[Header, list[AnyAction]]:
    """The first line and the actions of an undo file. A last line that is cut short was never acted on.

    Raises:
        InputError: not readable, not an undo file, of another format, or a damaged line.
    """
    hint = "undo files are written by `cloob classify --sort-into` and `--xmp`"
    try:
        text = Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    lines = text.split(b"\n")
    try:
        first = json.loads(lines[0])
        known = isinstance(first, dict) and "cloob_undo" in first
    except ValueError:
        known = False
    if not known:
        raise InputError(f"{path} is not an undo file", hint)
    if first["cloob_undo"] != FORMAT:
        raise InputError(f"{path}: an undo file of format {first['cloob_undo']}, this cloob knows {FORMAT}")
    return _header(path, lines[0]), list(_actions(path, lines[1:-1]))


def absolute_text(path: Path) -> str:
    """An absolute path as text; links within it stay as they are."""
    return path_text(Path(os.path.abspath(path)))


def _header(path: Path, line: bytes) -> Header:
    try:
        return Header.model_validate_json(line)
    except ValidationError:
        raise InputError(f"{path}: its first line is damaged") from None


def _actions(path: Path, lines: Sequence[bytes]) -> Iterator[AnyAction]:
    for number, line in enumerate(lines, start=2):
        try:
            action = _ACTION.validate_json(line)
        except ValidationError:
            raise InputError(f"{path} line {number}: is not an action", "nothing was undone") from None
        yield action
