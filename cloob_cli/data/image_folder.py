"""The images below a folder, found by the suffixes of their names, and the files that were passed over."""

from __future__ import annotations

import errno
import fnmatch
import functools
import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloob_cli.errors import InputError, NothingFoundError
from cloob_cli.text_format import os_reason

Watch = Callable[[int], None]

_WATCHED = 500  # files between two calls of a `watch`
_DANGLING, _SPECIAL = "links that lead nowhere", "pipes, sockets or devices"


_ALWAYS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".icns", ".pcx", ".sgi", ".qoi"}
)
# Formats that a build of Pillow may lack: its name of the feature, and the suffixes.
_BY_BUILD = {
    "webp": ("WebP", {".webp"}),
    "avif": ("AVIF", {".avif"}),
    "jpg_2000": ("JPEG 2000", {".jp2", ".j2k", ".jpx"}),
}
_HEIF = frozenset({".heic", ".heif", ".hif"})
_RAW = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mos", ".mrw", ".nef"}
    | {".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
_OTHERS = {
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".psb": "Photoshop",
    ".xcf": "GIMP",
    ".svg": "SVG",
    ".svgz": "SVG",
    ".eps": "PostScript",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".dds": "DDS",
}

_CONVERT = "convert them to PNG or JPEG"


@dataclass
class Scan:
    """The files below a folder.

    `images` are sorted by path; `unreadable` are folders that could not be listed, each with a reason; `passed_over`
    counts by kind what looks like an image and cannot be read; `others` is the number of further files.
    """

    images: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    others: int = 0


def list_images(folder: Path | str) -> list[Path]:
    """Every image below `folder`, sorted by path; a path to one image gives just that.

    Files are chosen by suffix (.heic and .heif where the extra `heif` is installed). Hidden files and folders are
    skipped; linked folders are followed, each real folder once.

    Raises:
        InputError: no such folder, or it cannot be read.
        NothingFoundError: no image in it.
    """
    return scan(folder).images


def scan(folder: Path | str, watch: Watch | None = None, exclude: Sequence[str] = ()) -> Scan:
    """List the images and everything that was passed over; `watch` is called with numbers of files that were looked at.

    Files and folders that `is_excluded` by one of the patterns `exclude` are left out, with all below such folders.

    Raises:
        InputError: no such folder, or it cannot be read.
        NothingFoundError: no image in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return Scan([folder])
    if not folder.is_dir():
        raise _nothing_at(folder)
    found = _scan(folder, watch or (lambda count: None), exclude)
    if not found.images:
        raise _no_images(folder, found)
    return found


def describe_passed_over(counts: Counter[str]) -> str:
    """Describe files that were passed over in one line: their number, kind and remedy."""
    remedies = dict(passed_over().values())
    parts = [f"{count} {kind}" + _in_brackets(remedies.get(kind)) for kind, count in counts.most_common()]
    return "passed over: " + ", ".join(parts)


@functools.cache
def suffixes() -> frozenset[str]:
    """The lower-case suffixes, with their dots, of files that are taken for images."""
    built = (found for feature, (_, found) in _BY_BUILD.items() if _has(feature))
    return _ALWAYS.union(*built, _HEIF if _has_heif() else ())


@functools.cache
def passed_over() -> dict[str, tuple[str, str]]:
    """Of image files that cannot be read here: suffix -> (their kind, a remedy)."""
    found = {suffix: (kind, _CONVERT) for suffix, kind in _OTHERS.items()}
    found |= dict.fromkeys(_RAW, ("camera raw", "develop them to TIFF or JPEG"))
    for feature, (kind, endings) in _BY_BUILD.items():
        if not _has(feature):
            found |= dict.fromkeys(endings, (kind, "pip install --upgrade pillow"))
    if not _has_heif():
        found |= dict.fromkeys(_HEIF, ("HEIC or HEIF", "pip install 'cloob[heif]'"))
    return found


def _in_brackets(text: str | None) -> str:
    return f" ({text})" if text else ""


def _nothing_at(path: Path) -> InputError:
    if os.path.lexists(path):
        what = "a link that leads nowhere" if not path.exists() else "neither a file nor a folder"
        return InputError(f"{path} is {what}")
    if any(sign in str(path) for sign in "*?["):
        return InputError(f"no file or folder at {path}", "the shell found nothing that fits the pattern")
    return InputError(f"no file or folder at {path}")


def _no_images(folder: Path, found: Scan) -> NothingFoundError:
    seen = []
    if found.passed_over:
        seen.append(describe_passed_over(found.passed_over))
    if found.unreadable:
        path, reason = found.unreadable[0]
        seen.append(f"{len(found.unreadable)} folder(s) cannot be read, like {path} ({reason})")
    if found.others:
        seen.append(f"{found.others} other file(s) were seen")
    hint = "known suffixes: " + " ".join(sorted(suffixes()))
    return NothingFoundError(f"no images in {folder}: {'; '.join(seen) or 'it is empty'}", hint)


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """True where a pattern fits a path relative to the folder that is searched, with `/` between its parts.

    A pattern with a `/` has to fit the whole path (`*` fits a `/` too), any other the last name of it. A slash at the
    beginning or the end of a pattern means nothing. Capital letters are told apart.
    """
    name = path.rpartition("/")[2]
    stripped = (pattern.strip("/") for pattern in patterns)
    return any(fnmatch.fnmatchcase(path if "/" in pattern else name, pattern) for pattern in stripped)


def path_order(path: Path) -> str:
    """Sort key of paths that orders them as `Path` does, part by part, and much faster."""
    return os.path.normcase(path).replace(os.sep, "\0")


def _scan(folder: Path, watch: Watch, exclude: Sequence[str]) -> Scan:
    found = Scan()
    waiting = [folder]
    visited: set[object] = set()
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as listing:
                entries = list(listing)
            status = os.stat(parent)
        except OSError as problem:
            if parent == folder:
                raise InputError(f"cannot read {folder}: {os_reason(problem)}") from None
            found.unreadable.append((parent, os_reason(problem)))
            continue
        # Some file systems number nothing.
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(parent)
        if identity in visited:  # a link back up, or a second link to the same folder
            continue
        visited.add(identity)
        if exclude:
            below = parent.relative_to(folder)
            entries = [one for one in entries if not is_excluded((below / one.name).as_posix(), exclude)]
        folders: list[str] = []
        for start in range(0, len(entries), _WATCHED):
            some = entries[start : start + _WATCHED]
            for entry in some:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                else:
                    _sort_in(parent, entry, found)
            watch(len(some))
        waiting += [parent / name for name in sorted(folders, reverse=True)]
    found.images.sort(key=path_order)
    found.unreadable.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _sort_in(parent: Path, entry: os.DirEntry[str], found: Scan) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    try:
        # A listing says of plain files what they are; only where it does not, and of links, the system is asked again.
        regular = entry.is_file(follow_symlinks=False) or stat.S_ISREG(os.stat(entry).st_mode)
    except OSError as problem:
        if entry.is_symlink() and problem.errno in {errno.ENOENT, errno.ELOOP}:
            found.passed_over[_DANGLING] += 1
            return
        regular = True  # a folder whose files may be listed but not opened: reading them will give the reason
    if suffix in _ALWAYS or suffix in suffixes():
        if regular:
            found.images.append(parent / entry.name)
        else:
            found.passed_over[_SPECIAL] += 1
    elif regular and suffix in passed_over():
        found.passed_over[passed_over()[suffix][0]] += 1
    else:
        found.others += regular


def _has(feature: str) -> bool:
    from PIL import features

    known = feature in features.modules or feature in features.codecs  # of others Pillow warns
    return known and bool(features.check(feature))


def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def is_hidden(path: Path, folder: Path) -> bool:
    """True for a file below `folder` whose name, or that of a folder on the way, begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
