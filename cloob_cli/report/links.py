"""Links from a page to files."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def link_to(file: Path, page: Path) -> str:
    """A link from the HTML file `page` to `file`: relative, so that both may move together.

    Bytes that are not UTF-8 are written as they are. No name becomes the scheme of a link.
    """
    target, folder = os.path.abspath(file), os.path.dirname(os.path.abspath(page))
    try:
        relative = os.path.relpath(target, folder)
    except ValueError:  # another drive
        return Path(target).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))
