"""Parts of the input, each read by one task: some files of images, a webdataset tar, or a Parquet file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from cloob_cli.data.image_folder import Watch, is_excluded, is_hidden, passed_over, suffixes
from cloob_cli.data.sources.columns import IMAGE_NAMES, find_column
from cloob_cli.errors import CloobError, DataError, Failure, InputError, NothingFoundError
from cloob_cli.inference.cluster.places import Place, file_system, place_for_arrow, place_of
from cloob_cli.inference.find_images import collect_images
from cloob_cli.text_format import first_line

Kind = Literal["images", "tar", "parquet", "failure"]

_SHARDS: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True)
class Part:
    """Files of one kind in one file system, and what they are called in the result.

    A `failure` is an argument that cannot be read; its reason stands in `detail`. Of a Parquet file that is the name of
    the column of images that was asked for, or nothing.
    """

    kind: Kind
    base: str
    paths: list[str]
    names: list[str]
    detail: str = ""

    def places(self) -> list[Place]:
        return [Place(self.base, path) for path in self.paths]

    def to_json(self) -> str:
        """As ASCII, also where names of files are not UTF-8."""
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str) -> Part:
        return cls(**json.loads(text))


@dataclass
class Found:
    """The parts that the arguments of a command name, in their order.

    `images` is the number of images where every part is made of images, else None. `passed_over` counts image files
    that cannot be read here by their kind, and `unread` the tars in folders that stand for the images beside them.
    """

    parts: list[Part] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> int | None:
        if any(part.kind in ("tar", "parquet") for part in self.parts):
            return None
        return sum(len(part.names) for part in self.parts)


def find_parts(
    sources: Sequence[Path | str],
    *,
    size: int,
    exclude: Sequence[str] = (),
    column: str | None = None,
    watch: Watch | None = None,
) -> Found:
    """Find what the arguments name, on this disk and elsewhere, each file once.

    A folder stands for its images; one without images for its tars; one without either for its Parquet files. All of
    them are sorted by path, and hidden ones are left out.

    Args:
        size: images in a part that is made of images, at most.
        exclude: patterns of files and folders to leave out (`image_folder.is_excluded`).
        column: the column of images in Parquet files.
        watch: called with counts of files that were looked at.

    Raises:
        InputError: not one argument can be read; or a Parquet file has no such column.
    """
    found = Found()
    errors: list[InputError] = []
    seen: set[Place] = set()
    for source in sources:
        place = place_of(source)
        try:
            entries = _below(place, found, exclude, watch or (lambda count: None))
        except InputError as problem:
            errors.append(problem)
            found.parts.append(Part("failure", "", [""], [place.name], problem.message))
            continue
        fresh = [entry for entry in entries if isinstance(entry, Failure) or _real(entry) not in seen]
        seen.update(_real(entry) for entry in fresh if isinstance(entry, Place))
        found.parts += _parts(fresh, size, column)
    if errors and len(errors) == len(found.parts):
        raise errors[0]
    if not found.parts:
        raise NothingFoundError("no image is left: --exclude leaves out all of them")
    _check_column(found.parts)
    return found


def _below(place: Place, found: Found, exclude: Sequence[str], watch: Watch) -> list[Place | Failure]:
    if place.base:
        return _below_address(place, found, exclude, watch)
    path = Path(place.path)
    if path.is_file() and place.suffix in _SHARDS:
        return [] if is_excluded(path.as_posix(), exclude) else [place]
    try:
        images = collect_images([path], watch, exclude)
    except NothingFoundError:
        shards = _shards_below(path, exclude) if path.is_dir() else {}
        if not shards:
            raise
        return [Place("", str(shard)) for shard in shards.get("tar") or shards["parquet"]]
    found.passed_over += images.passed_over
    if path.is_dir() and os.access(path, os.R_OK):
        found.unread[place.name] += sum(name.lower().endswith(".tar") for name in os.listdir(path))
    return [item if isinstance(item, Failure) else Place("", str(item)) for item in images.items]


def _shards_below(folder: Path, exclude: Sequence[str]) -> dict[Kind, list[Path]]:
    shards: dict[Kind, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        kind = _SHARDS.get(path.suffix.lower())
        if kind and path.is_file() and not is_hidden(path, folder) and not _left_out(path, folder, exclude):
            shards.setdefault(kind, []).append(path)
    return shards


def _left_out(path: Path, folder: Path, exclude: Sequence[str]) -> bool:
    below = path.relative_to(folder)
    return any(is_excluded(part.as_posix(), exclude) for part in (below, *below.parents))


def _below_address(place: Place, found: Found, exclude: Sequence[str], watch: Watch) -> list[Place | Failure]:
    from pyarrow import fs

    files = file_system(place.base)
    try:
        [info] = files.get_file_info([place.path])
        if info.type == fs.FileType.File:
            return [] if is_excluded(place.path, exclude) else [place]
        if info.type == fs.FileType.NotFound:
            raise InputError(f"no file or folder at {place.name}")
        listed = files.get_file_info(fs.FileSelector(place.path, recursive=True))
    except (OSError, ValueError) as problem:  # pyarrow's errors, and those of a file system of fsspec
        raise InputError(f"cannot read {place.name}: {first_line(problem)}") from None
    kinds: dict[str, list[str]] = {"images": [], "tar": [], "parquet": []}
    skipped: Counter[str] = Counter()
    for info in sorted(listed, key=lambda info: str(info.path).split("/")):
        below = Path(info.path[len(place.path) :].lstrip("/"))
        hidden = any(part.startswith(".") for part in below.parts)
        if info.type != fs.FileType.File or hidden or _left_out(below, Path(), exclude):
            continue
        watch(1)
        suffix = below.suffix.lower()
        if suffix in suffixes():
            kinds["images"].append(info.path)
        elif suffix in _SHARDS:
            kinds[_SHARDS[suffix]].append(info.path)
        elif suffix in passed_over():
            skipped[passed_over()[suffix][0]] += 1
    chosen = kinds["images"] or kinds["tar"] or kinds["parquet"]
    if not chosen:
        raise NothingFoundError(f"no images, .tar or .parquet files in {place.name}")
    found.passed_over += skipped
    found.unread[place.name] += len(kinds["tar"]) if kinds["images"] else 0
    return [Place(place.base, path) for path in chosen]


def _real(place: Place | Failure) -> Place:
    """One place for all ways to a file of this disk; links to a file are files of their own."""
    assert isinstance(place, Place)
    if place.base:
        return place
    folder, name = os.path.split(place.path)
    return Place("", os.path.join(os.path.realpath(folder), name))


def _parts(entries: Sequence[Place | Failure], size: int, column: str | None) -> Iterator[Part]:
    for (kind, base), group in groupby(entries, _kind):
        members = list(group)
        step = size if kind == "images" else 1
        for start in range(0, len(members), step):
            places = members[start : start + step]
            names = [place.name for place in places]
            if isinstance(places[0], Failure):
                yield Part("failure", "", [""], names, places[0].reason)
                continue
            paths = [
                place.path if base else os.path.abspath(place.path) for place in places if isinstance(place, Place)
            ]
            yield Part(kind, base, paths, names, column or "" if kind == "parquet" else "")


def _kind(entry: Place | Failure) -> tuple[Kind, str]:
    if isinstance(entry, Failure):
        return "failure", ""
    return _SHARDS.get(entry.suffix, "images"), entry.base


def _check_column(parts: Sequence[Part]) -> None:
    """Look for the column in the first Parquet file at once: the others are read only when their turn comes."""
    from pyarrow import parquet

    first = next((part for part in parts if part.kind == "parquet"), None)
    if first is None:
        return
    try:
        with place_for_arrow(first.places()[0]) as file:
            names = parquet.read_schema(file).names
    except Exception:  # a file that cannot be read is listed as such
        return
    find_image_column(names, first.detail, first.names[0])


def find_image_column(names: Sequence[str], asked: str, where: str) -> str:
    """The column of images in a Parquet file.

    Raises:
        DataError: it has none, or none of the name that was asked for.
    """
    try:
        return find_column(names, asked or None, IMAGE_NAMES, "image", where)
    except CloobError as problem:
        hint = (problem.hint or "").partition("; name it")[0]
        raise DataError(problem.message, f"{hint}; name it with --image-column") from None
