"""Which files are images by their names, and what becomes of those that cannot be read here."""

from __future__ import annotations

import functools
import importlib.util

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


@functools.cache
def suffixes() -> frozenset[str]:
    """The lower-case suffixes, with their dots, of files that are taken for images."""
    built = (found for feature, (_, found) in _BY_BUILD.items() if _has(feature))
    return _ALWAYS.union(*built, _HEIF if _has_heif() else ())


@functools.cache
def passed_over() -> dict[str, tuple[str, str]]:
    """Of image files that cannot be read here: suffix -> (their kind, what makes them readable)."""
    found = {suffix: (kind, _CONVERT) for suffix, kind in _OTHERS.items()}
    found |= dict.fromkeys(_RAW, ("camera raw", "develop them to TIFF or JPEG"))
    for feature, (kind, endings) in _BY_BUILD.items():
        if not _has(feature):
            found |= dict.fromkeys(endings, (kind, "pip install --upgrade pillow"))
    if not _has_heif():
        found |= dict.fromkeys(_HEIF, ("HEIC or HEIF", "pip install 'cloob[heif]'"))
    return found


def _has(feature: str) -> bool:
    from PIL import features

    known = feature in features.modules or feature in features.codecs  # of others Pillow warns
    return known and bool(features.check(feature))


def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None
