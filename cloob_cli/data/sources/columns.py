"""Finding the image's and the caption's column by name."""

from __future__ import annotations

from collections.abc import Sequence

from cloob_cli.errors import DataError
from cloob_cli.strict_model import nearest

IMAGE_NAMES = (
    "image", "images", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes",
    "filepath", "file_path", "file_name", "filename", "image_path", "image_file", "path", "file",
)  # fmt: skip
CAPTION_NAMES = (
    "captions", "caption", "texts", "text", "txt", "title", "description", "descriptions", "sentences", "sentence",
    "alt_text", "alt", "prompt", "label",
)  # fmt: skip


def find_column(columns: Sequence[str], asked: str | None, names: Sequence[str], what: str, where: str) -> str:
    """The column called `asked`, or the first of `names` that is there, in any case.

    Raises:
        DataError: no such column; the columns that are there are named.
    """
    found = f"columns found: {', '.join(map(str, columns)) or 'none'}"
    if asked is not None:
        if asked in columns:
            return asked
        near = nearest(asked, columns)
        raise DataError(f"{where} has no column '{asked}'", found + (f"; did you mean '{near}'?" if near else ""))
    lower = {column.strip().lower(): column for column in reversed(columns)}
    for name in names:
        if name in lower:
            return lower[name]
    raise DataError(f"{where} has no column for the {what}", f"{found}; name it with data.{what}_key")


def caption_list(value: object) -> list[str]:
    """A caption, a list of them or nothing -> the captions that hold any text."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for item in values if item is not None and (text := str(item)).strip()]
