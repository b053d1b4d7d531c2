"""Keeps libtiff off stderr, where it repeats about damaged files what their skip already says."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def silence() -> None:
    """Take libtiff's own messages away, where Pillow's libtiff is a library that can be reached (not on Windows)."""
    from PIL import _imaging

    try:
        library = ctypes.CDLL(_imaging.__file__)  # finds also what this one is linked with
        setters = [getattr(library, name) for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler")]
    except (AttributeError, OSError):
        return
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        setter(None)
