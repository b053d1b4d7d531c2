"""File images by their labels, batch by batch: into folders, with keywords in sidecars, or both."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from cloob_cli.atomic_files import remove_abandoned
from cloob_cli.errors import CloobError, DataError, DiskSpaceError, UsageError
from cloob_cli.filing import placing, sidecars
from cloob_cli.filing.sidecars import Stems, named_like, sidecar_of
from cloob_cli.filing.undo_file import AnyAction, MakeFolder, Mode, Place, UndoFile, Write, absolute_text
from cloob_cli.path_text import path_of
from cloob_cli.text_format import counted, os_reason

LabelPath = tuple[str, ...]  # the names from the root of a tree of labels to one of them; usually one name

_STOPS = {errno.ENOSPC, errno.EROFS, errno.EIO, errno.EXDEV, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}


@dataclass(frozen=True)
class ToFile:
    """An image with its answer: the folders that it goes into, and the keywords that it gets (none: no sidecar)."""

    image: Path
    folders: Sequence[LabelPath]
    keywords: Sequence[LabelPath]


@dataclass
class Filed:
    """New places of one image, or the reason why it has none."""

    targets: list[Path] = field(default_factory=list)
    reason: str | None = None


def refuse_nested(target: Path, sources: Iterable[Path]) -> None:
    """Refuse to sort into a folder that is searched for images, which the next run would then sort again.

    Raises:
        UsageError: `target` is one of the folders `sources`, or within one; or it is a file.
    """
    place = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is not a folder", "choose another --sort-into")
    for source in sources:
        folder = Path(os.path.realpath(source))
        if folder.is_dir() and place.is_relative_to(folder):
            raise UsageError(
                f"{target} lies in {source}, whose images are to be sorted",
                "choose a folder outside of it, beside it for example",
            )


class Filer:
    """Files images and writes every step into the undo file first.

    Args:
        target: the folder that holds the labels' folders; None leaves images where they are.
        mode: how an image gets its new place.
        folders: the folder of each label, relative to `target`.
        undo: the undo file.
    """

    def __init__(
        self,
        target: Path | None,
        mode: Mode,
        folders: Mapping[LabelPath, PurePath],
        undo: UndoFile,
    ) -> None:
        self._target, self._mode, self._folders, self._undo = target, mode, folders, undo
        self._stems = Stems()
        self._known: set[Path] = set()  # folders that are there and clean of unfinished files
        self._planned: set[Path] = set()  # targets of this run
        self.placed = self.written = 0

    def file(self, batch: Sequence[ToFile]) -> list[Filed]:
        """File a batch; one entry for each image, in order.

        Raises:
            CloobError: a full disk and other things that would befall every further image too. What was done so far
                stands in the undo file.
        """
        results = [Filed() for _ in batch]
        try:
            if self._target is not None:
                self._place(batch, results)
            self._write(batch, results)
        except OSError as problem:
            raise self._stopped(problem) from None
        return results

    def _place(self, batch: Sequence[ToFile], results: Sequence[Filed]) -> None:
        planned: list[tuple[Filed, list[Place]]] = []
        actions: list[AnyAction] = []
        for one, result in zip(batch, results, strict=True):
            for label in dict.fromkeys(one.folders):
                try:
                    wanted = self._folder(label, actions) / one.image.name
                    places = self._plan(one.image, wanted)
                    if isinstance(places, Path):
                        result.targets.append(places)
                    else:
                        planned.append((result, places))
                except OSError as problem:
                    result.reason = self._reason(problem)
        self._undo.write([*actions, *(action for _, places in planned for action in places)])
        for action in actions:
            assert isinstance(action, MakeFolder)
            path_of(action.path).mkdir(exist_ok=True)
        for result, places in planned:
            try:
                self._carry_out(result, places)
            except OSError as problem:
                result.reason = self._reason(problem)

    def _plan(self, image: Path, wanted: Path) -> list[Place] | Path:
        """The placing of an image at a free path like `wanted`, and of the sidecar that moves with it.

        Where an earlier run has placed the image, its path there.
        """
        sidecar = sidecar_of(image, self._stems) if self._mode == "move" else None
        if sidecar is not None and not sidecar.is_file():
            sidecar = None
        number, target = 1, wanted
        while self._is_taken(target) or (sidecar and self._is_taken(named_like(sidecar, image, target))):
            if target not in self._planned and placing.already_there(self._mode, image, target):
                return target
            number += 1
            target = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        places = [placing.plan(self._mode, image, target)]
        if sidecar is not None:
            places.append(placing.plan("move", sidecar, named_like(sidecar, image, target)))
        self._planned.update(path_of(place.target) for place in places)
        return places

    def _is_taken(self, path: Path) -> bool:
        return path in self._planned or os.path.lexists(path)

    def _carry_out(self, result: Filed, places: list[Place]) -> None:
        image, target = path_of(places[0].source), path_of(places[0].target)
        try:
            placing.carry_out(places[0])
        except FileExistsError:  # somebody else was quicker
            self._planned.discard(target)
            again = self._plan(image, target)
            if isinstance(again, Path):
                result.targets.append(again)
                return
            self._undo.write(again)
            self._carry_out(result, again)
            return
        self.placed += 1
        self._stems.add(target)
        result.targets.append(target)
        for sidecar in places[1:]:
            placing.carry_out(sidecar)

    def _folder(self, label: LabelPath, actions: list[AnyAction]) -> Path:
        assert self._target is not None
        folder = self._target / self._folders[label]
        self._plan_folders(folder, actions)
        return folder

    def _plan_folders(self, folder: Path, actions: list[AnyAction]) -> None:
        if folder in self._known:
            return
        self._known.add(folder)
        assert self._target is not None
        if folder != self._target:
            self._plan_folders(folder.parent, actions)
        if not folder.exists():
            actions.append(MakeFolder(path=absolute_text(folder)))
        else:
            remove_abandoned(folder)

    def _write(self, batch: Sequence[ToFile], results: Sequence[Filed]) -> None:
        """Write sidecars: beside the sorted images, or beside the originals where none are sorted."""
        planned: list[tuple[Filed, Write, bytes]] = []
        for one, result in zip(batch, results, strict=True):
            if not one.keywords or result.reason:
                continue
            for image in result.targets if self._target is not None else [one.image]:
                try:
                    found = self._plan_sidecar(one, image)
                except DataError as problem:
                    result.reason = problem.message
                except OSError as problem:
                    result.reason = self._reason(problem)
                else:
                    if found is not None:
                        planned.append((result, *found))
        self._undo.write([action for _, action, _ in planned])
        for result, action, after in planned:
            try:
                sidecars.carry_out(action, after)
                self.written += 1
            except OSError as problem:
                result.reason = self._reason(problem)

    def _plan_sidecar(self, one: ToFile, image: Path) -> tuple[Write, bytes] | None:
        if image.parent not in self._known:
            self._known.add(image.parent)
            remove_abandoned(image.parent)
        own = sidecar_of(one.image, self._stems) if self._mode != "move" else None
        return sidecars.plan_write(sidecar_of(image, self._stems), one.keywords, merge_from=own)

    def _reason(self, problem: OSError) -> str:
        """The reason why one image was not filed; a problem of all images is raised again."""
        if problem.errno in _STOPS:
            raise problem
        return f"cannot be filed: {os_reason(problem)}"

    def _stopped(self, problem: OSError) -> CloobError:
        done = f"{counted(self.placed, 'image')} sorted, {counted(self.written, 'sidecar')} written"
        hint = f"cloob undo {self._undo.path} takes back what was done" if self._undo.path else None
        if problem.errno == errno.EXDEV and self._mode == "hardlink":
            return UsageError("hard links cannot lead to another file system", "--sort-mode copy or symlink can")
        kind = DiskSpaceError if problem.errno == errno.ENOSPC else CloobError
        return kind(f"stopped, {os_reason(problem)}: {done}", hint)
