"""Find the images that the arguments of a command name. Nothing here imports torch."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloob_cli.data.image_folder import Watch, is_excluded, path_order, scan
from cloob_cli.errors import Failure, InputError, NothingFoundError
from cloob_cli.path_text import path_text


@dataclass
class Collected:
    """Images to read and, in their places among them, failures: missing files and folders that cannot be listed.

    `passed_over` counts, by format, the image files that this installation cannot read.
    """

    items: list[Path | Failure] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def collect_images(sources: Sequence[Path], watch: Watch | None = None, exclude: Sequence[str] = ()) -> Collected:
    """Find the images among files and below folders, each file once, in the order of the arguments.

    `watch` is called with counts of files that were looked at. Patterns `exclude` leave out files and folders below
    the sources (`image_folder.is_excluded`), and files that are named themselves.

    Raises:
        InputError: none of `sources` gives an image; the error is the first one's.
    """
    found = Collected()
    seen: set[str] = set()
    real = functools.cache(os.path.realpath)
    errors: list[InputError] = []
    for source in sources:
        if exclude and is_excluded(source.as_posix(), exclude) and source.is_file():
            continue
        try:
            below = scan(source, watch, exclude)
        except InputError as problem:
            errors.append(problem)
            found.items.append(Failure(path_text(source), problem.message))
            continue
        found.passed_over += below.passed_over
        folders = dict(below.unreadable)
        for path in sorted([*below.images, *folders], key=path_order) if folders else below.images:
            if len(sources) > 1:  # below one of them each file is found once
                parent, name = os.path.split(path)
                place = os.path.join(real(parent), name)  # links to a file are files of their own
                if place in seen:
                    continue
                seen.add(place)
            reason = folders.get(path)
            failure = reason and Failure(path_text(path), f"the folder cannot be read: {reason}")
            found.items.append(failure or path)
    if errors and not any(isinstance(item, Path) for item in found.items) and len(errors) == len(found.items):
        raise errors[0]
    if not found.items:
        raise NothingFoundError("no image is left: --exclude leaves out all of them")
    return found
