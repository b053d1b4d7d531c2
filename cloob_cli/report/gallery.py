"""A page of images: thumbnails with scores, to sort, filter, and to choose other labels for."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cloob_cli.atomic_files import replacing
from cloob_cli.data.thumbnails import media_type
from cloob_cli.path_text import path_of, path_text
from cloob_cli.report.links import link_to
from cloob_cli.report.page import data_uri, render, script_json


@dataclass(frozen=True)
class Item:
    """One image of a page.

    Attributes:
        path: as the rows of results have it (`path_text`).
        thumbnail: the bytes of a small image; none shows an empty frame.
        label: empty where images have none.
        values: as many as the page has `fields`.
        choices: further labels with their probabilities, best first.
        details: lines for the view of a single image: what, and its text.
        section: the heading below which the image stands on a page with sections.
    """

    path: str
    thumbnail: bytes = b""
    label: str = ""
    values: Sequence[float | None] = ()
    choices: Sequence[tuple[str, float]] = ()
    details: Sequence[tuple[str, str]] = ()
    section: str = ""


@dataclass(frozen=True)
class Gallery:
    """The subject of a page.

    Attributes:
        title: its heading.
        fields: names of the numbers that every image has, the one that cards show first.
        labels: those that may be chosen for an image instead of its own; none: labels cannot be changed.
        sections: images stand under headings, in the order in which they come.
        facts: lines about the whole: what, and its text.
    """

    title: str
    fields: Sequence[str] = ()
    labels: Sequence[str] = ()
    sections: bool = False
    facts: Sequence[tuple[str, str]] = ()


@dataclass
class GalleryFile:
    """A page that is being written; `facts` may be added until it is whole."""

    page: Path
    facts: list[tuple[str, str]]
    _rows: IO[bytes]
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    count: int = 0

    def add(self, item: Item) -> None:
        """Append an image."""
        found: dict[str, object] = {"p": item.path, "h": link_to(path_of(item.path), self.page)}
        if item.thumbnail:
            found["t"] = data_uri(item.thumbnail, media_type(item.thumbnail))
        for key, value in (("l", item.label), ("s", item.section)):
            if value:
                found[key] = value
        for key, values in (("v", item.values), ("c", item.choices), ("d", item.details)):
            if values:
                found[key] = [_rounded(value) for value in values]
        row = script_json(found).encode("ascii")
        self._digest.update(row)
        self._rows.write((b",\n" if self.count else b"") + row)
        self.count += 1

    def rows(self) -> Iterator[str]:
        """The images as pieces of a JSON list."""
        self._rows.seek(0)
        yield "["
        while piece := self._rows.read(1 << 20):
            yield piece.decode("ascii")
        yield "]"

    def identity(self) -> str:
        """The same for the same images: a browser keeps choices under it."""
        return self._digest.hexdigest()[:16]


@contextmanager
def open_gallery(path: Path, gallery: Gallery) -> Iterator[GalleryFile]:
    """Write a page; images wait in a file without a name, since what stands above them is known only at the end.

    Raises:
        OSError: the page cannot be written.
    """
    with replacing(path) as temporary, tempfile.TemporaryFile(dir=temporary.parent) as rows:
        file = GalleryFile(path, list(gallery.facts), rows)
        yield file
        settings = {
            "id": file.identity(),
            "base": path_text(Path.cwd()),
            "fields": list(gallery.fields),
            "labels": list(gallery.labels),
            "sections": gallery.sections,
        }
        pieces = render(
            "gallery.html",
            ["report.css", "gallery.css"],
            ["theme.js", "lines.js", "corrections.js", "gallery.js"],
            title=gallery.title,
            facts=file.facts,
            editable=bool(gallery.labels),
            settings=_markup(script_json(settings)),
            rows=(_markup(piece) for piece in file.rows()),
        )
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.writelines(pieces)


def _rounded(value: object) -> object:
    """A number with six digits behind the point, which is more than a page shows; other values as they are."""
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def _markup(text: str) -> str:
    from markupsafe import Markup

    return Markup(text)
