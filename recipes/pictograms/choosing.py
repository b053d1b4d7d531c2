"""Choose drawings of the icon sets and word them: at most so many of a subject in a set, and in all sets together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from captions import Choice, Emoji, Named, common_ends, named, without_tone, words
from packages import json_files
from sources import IconSet, Sources

from cloob_cli.errors import DataError

_FOLDERS = ("folder", "file")  # of sets of logos, these are no logos
_TAG_FILES = {
    "lucide": "tags.json",
    "tabler": "icons.json",
    "mdi": "meta.json",
    "fontawesome": "metadata/icon-families.json",
    "ionicons": "dist/ionicons.json",
}


@dataclass(frozen=True)
class Drawing:
    """One drawing that was chosen: its markup as Iconify has it, and what it is called.

    `tags` are other words for it, `more` its category; `box` holds the keys left, top, width and height that it has.
    """

    name: str
    kind: str
    label: str
    style: str
    body: object
    box: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """The chosen drawings of a set, for `use`: "train" or an evaluation set. `info` is what the set says of itself."""

    set: str
    kind: str
    use: str
    seed: str
    defaults: Mapping[str, Any]
    info: Mapping[str, Any]
    drawings: Sequence[Drawing] = field(repr=False)
    available: int = 0


def jobs_of(sources: Sources, tarballs: Mapping[str, Path], limit: int | None = None) -> list[Job]:
    """The jobs of all sets, in the order of sources.toml.

    Args:
        tarballs: by the packages' names.
        limit: of drawings of each set.

    Raises:
        DataError: a package is damaged, lacks a set, or names another license than sources.toml.
    """
    by_use: dict[str, Path] = {package.use: tarballs[package.name] for package in sources.packages}
    emoji = Emoji(_one_file(by_use["emoji"], "en/data.json")) if "emoji" in by_use else Emoji([])
    tags: dict[str, dict[str, list[str]]] = {
        use: _tags(use, _one_file(by_use[use], file)) for use, file in _TAG_FILES.items() if use in by_use
    }
    files = {f"json/{one.name}.json": one for one in sources.sets}
    jobs = {}
    for file, content in json_files(by_use["icons"], set(files)):
        one = files[file]
        try:
            jobs[one.name] = _job(one, content, emoji, tags.get(one.tags, {}), sources)
        except (AttributeError, KeyError, TypeError) as problem:
            raise DataError(f"{file} is no icon set as Iconify writes them ({problem})") from None
    return _capped([jobs[one.name] for one in sources.sets], sources.limits.per_label, limit)


def _one_file(tarball: Path, name: str) -> Any:
    return next(iter(json_files(tarball, {name})))[1]


def _job(one: IconSet, content: Any, emoji: Emoji, tags: Mapping[str, list[str]], sources: Sources) -> Job:
    info, icons = content["info"], content["icons"]
    license_named = info.get("license", {}).get("spdx")
    if license_named != one.license:
        raise DataError(f"the set {one.name} is under {license_named}, not {one.license} as sources.toml says")
    icons = {name: icon for name, icon in icons.items() if not icon.get("hidden") and name.endswith(one.only)}
    seed = sources.limits.seed
    by_subject: dict[str, list[Drawing]] = defaultdict(list)
    described = _Described(one, content, emoji, tags)
    for name, icon in icons.items():
        drawing = described.drawing(name, icon)
        if drawing is not None:
            by_subject[without_tone(drawing.label) if one.kind == "emoji" else drawing.label].append(drawing)
    most = 1 if one.use != "train" or one.kind in {"emoji", "flag"} else sources.limits.per_set
    chosen = [
        drawing
        for drawings in by_subject.values()
        for drawing in sorted(drawings, key=lambda d: _order(seed, one.name, d.name))[:most]
    ]
    defaults = {key: content[key] for key in ("left", "top", "width", "height") if key in content}
    return Job(one.name, one.kind, one.use, seed, defaults, info, sorted(chosen, key=lambda d: d.name), len(icons))


class _Described:
    """Says of every drawing of one set what it is called."""

    def __init__(self, one: IconSet, content: Any, emoji: Emoji, tags: Mapping[str, list[str]]) -> None:
        self._set, self._emoji, self._tags = one, emoji, tags
        self._suffixes = content.get("suffixes") or {}
        self._names = content["icons"]
        self._common = common_ends(self._names)
        self._categories: dict[str, str] = {}
        for category, names in (content.get("categories") or {}).items():
            for name in names:
                self._categories.setdefault(name, ", ".join(map(words, category.split("&"))))
        self._aliases: dict[str, list[str]] = defaultdict(list)
        for alias, entry in (content.get("aliases") or {}).items():
            if set(entry) <= {"parent", "hidden"}:  # others are turned or mirrored
                self._aliases[entry["parent"]].append(alias)

    def drawing(self, name: str, icon: Mapping[str, Any]) -> Drawing | None:
        """The drawing, or None where its name says nothing that a caption could."""
        found = self._named(name)
        if found is None:
            return None
        kind, one = found
        if not any(letter.isalpha() for letter in one.label):
            return None
        if kind == "emoji":
            tags = self._emoji.tags(one.label)
        else:
            others = (self._icon_name(alias) for alias in self._aliases[name])
            tags = [
                *self._tags.get(one.label.replace(" ", "-"), []),
                *(o.label for o in others if o.style == one.style),
            ]
        more = (self._categories[name],) if name in self._categories else ()
        box = {key: icon[key] for key in ("left", "top", "width", "height") if key in icon}
        unique = tuple(dict.fromkeys(tag for tag in tags if not set(tag.split()) <= set(one.label.lower().split())))
        return Drawing(name, kind, one.label, one.style, icon["body"], box, unique, more)

    def _named(self, name: str) -> tuple[str, Named] | None:
        kind = self._set.kind
        if kind == "flag":
            country = self._emoji.countries.get(name.removesuffix(self._set.only))
            return None if country is None else ("flag", Named(country))
        if kind == "emoji":
            label = self._emoji.label(name) or words(name)
            if label.startswith("flag: "):
                return None if self._set.use != "train" else ("flag", Named(label.removeprefix("flag: ")))
            return kind, Named(label)
        if kind == "logo" and any(part in name for part in _FOLDERS):
            kind = "color-icon"
        return kind, self._icon_name(name)

    def _icon_name(self, name: str) -> Named:
        found = named(name, self._suffixes, self._names, self._common, self._set.numbered)
        if self._set.style and (self._set.fixed_style or not found.style):
            return replace(found, style=self._set.style)
        return found


def _order(*key: str) -> float:
    return Choice("order", *key).number()


def _capped(jobs: Sequence[Job], per_label: int, limit: int | None) -> list[Job]:
    """The jobs with at most `per_label` training drawings of the same label, and at most `limit` of each set."""
    by_label: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for job in jobs:
        if job.use == "train":
            for one in job.drawings:
                by_label[f"{one.kind} {one.label}".lower()].append(
                    (_order(job.seed, "label", job.set, one.name), job.set, one.name)
                )
    kept = {(name, drawing) for found in by_label.values() for _, name, drawing in sorted(found)[:per_label]}

    def drawings(job: Job) -> Iterator[Drawing]:
        chosen = [one for one in job.drawings if job.use != "train" or (job.set, one.name) in kept]
        if limit is not None:
            chosen = sorted(chosen, key=lambda one: _order(job.seed, "limit", job.set, one.name))[:limit]
        yield from sorted(chosen, key=lambda one: one.name)

    return [replace(job, drawings=tuple(drawings(job))) for job in jobs]


def _tags(use: str, content: Any) -> dict[str, list[str]]:
    """Tags by icon name, from the file in which each of the packages keeps them."""
    try:
        if use == "lucide":
            found = dict(content)
        elif use == "tabler":
            found = {name: one["tags"] for name, one in content.items()}
        elif use == "mdi":
            found = {one["name"]: [*one["aliases"], *one["tags"]] for one in content}
        elif use == "fontawesome":
            found = {name: one["search"]["terms"] for name, one in content.items()}
        else:
            found = {one["name"]: one["tags"] for one in content["icons"]}
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise DataError(f"the tags of {use} have another form than expected ({problem})") from None
    return {name: [words(str(tag)) for tag in tags] for name, tags in found.items()}
