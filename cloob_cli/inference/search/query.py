"""A query: texts and images with weights, which become one vector."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cloob_cli.errors import InputError, UsageError
from cloob_cli.path_text import path_text

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel

_NUMBER = re.compile(r"\d*\.?\d+")
_SMALLEST = 1e-4  # length of a sum of weighted unit vectors below which it is rounding only


class Part(NamedTuple):
    """One text, or the path of one image, of a query; a negative weight leads away from it."""

    content: str | Path
    weight: float


def text_part(text: str, sign: float = 1.0) -> Part:
    """The part that `TEXT` or `TEXT:WEIGHT` means; a backslash before the colon makes it part of the text.

    Raises:
        UsageError: there is no text, or the weight is 0.
    """
    content, weight = _split(text)
    before, colon, behind = content.rpartition("\\:")
    if colon and _NUMBER.fullmatch(behind.strip()):
        content = f"{before}:{behind}"
    if not content.strip():
        raise UsageError("an empty text cannot be searched for")
    return Part(content, sign * weight)


def image_part(name: str, sign: float = 1.0) -> Part:
    """The part that `FILE` or `FILE:WEIGHT` means: the file of the whole name comes first.

    Raises:
        UsageError: there is no such file, or the weight is 0.
    """
    if Path(name).is_file():
        return Part(Path(name), sign)
    content, weight = _split(name)
    if not Path(content).is_file():
        raise UsageError(f"no image at {name}")
    return Part(Path(content), sign * weight)


def either_part(text: str, sign: float = 1.0) -> Part:
    """The image where a file has that name, or else the text."""
    content, _ = _split(text)
    if Path(text).is_file() or Path(content).is_file():
        return image_part(text, sign)
    return text_part(text, sign)


def encode_query(model: CloobModel, parts: Sequence[Part], *, exact: bool = False) -> np.ndarray:
    """The weighted sum of the parts' embeddings, scaled to unit length, float32 [D].

    Args:
        exact: decode the images as those of an index with exact decoding were.

    Raises:
        InputError: an image cannot be read.
        UsageError: the parts cancel each other out.
    """
    from cloob_cli.inference.embed import embed_images, embed_texts

    images = [part.content for part in parts if isinstance(part.content, Path)]
    texts = [part.content for part in parts if isinstance(part.content, str)]
    vectors: dict[str | Path, np.ndarray] = {}
    for batch in embed_texts(model, dict.fromkeys(texts)):
        assert batch.embeddings is not None
        vectors |= dict(zip(batch.names, batch.embeddings.numpy(), strict=True))
    by_name = {path_text(path): path for path in images}
    for batch in embed_images(model, by_name.values(), batch_size=16, workers=0, exact=exact):
        if batch.failures:
            failure = batch.failures[0]
            raise InputError(f"{failure.name}: {failure.reason}", "a query's image must be readable")
        assert batch.embeddings is not None
        found = (by_name[name] for name in batch.names)
        vectors |= dict(zip(found, batch.embeddings.numpy(), strict=True))
    total = sum((part.weight * vectors[part.content] for part in parts), start=np.float32(0.0))
    length = float(np.linalg.norm(total))
    if length < _SMALLEST * sum(abs(part.weight) for part in parts):
        raise UsageError("the parts of the query cancel each other out", "choose other weights")
    return np.asarray(total / length, np.float32)


def _split(text: str) -> tuple[str, float]:
    """A text without its weight, and the weight; a time (12:30) or a ratio (16:9) has none."""
    content, _, behind = text.rpartition(":")
    number = behind.strip()
    if not content or content.endswith("\\") or not _NUMBER.fullmatch(number):
        return text, 1.0
    if number.isdigit() and content[-1].isdigit():
        return text, 1.0
    weight = float(number)
    if not 0 < weight < math.inf:
        raise UsageError(f"'{text}': a weight is a number above 0", "--minus leads away from a text or an image")
    return content, weight
