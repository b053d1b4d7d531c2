"""Zoo cards: what is known of every released model, one `zoo/NAME.toml` each. What nobody published is left out."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cloob_cli import assets
from cloob_cli.errors import UnknownModelError, ZooEntryError
from cloob_cli.schema import StrictModel, nearest, parse

Format = Literal["cloob", "mljku", "crowsonkb", "rinna"]


class Source(StrictModel):
    """Where the original is: `bundled` in the package, a `url`, or a `repository` on the Hugging Face Hub.

    `format` is the layout of the original; anything but "cloob" is converted when it is pulled.
    """

    format: Format
    bundled: bool = False
    url: str | None = Field(default=None, pattern=r"^https://")
    repository: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    tokenizer_repository: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the file at `url`")
    download_bytes: int | None = Field(default=None, gt=0)
    architecture: str | None = Field(default=None, description="the upstream architecture, where the format has names")
    config: dict[str, Any] | None = Field(default=None, description="the upstream configuration, for the converter")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if sum((self.bundled, self.url is not None, self.repository is not None)) != 1:
            raise ValueError("say exactly one of bundled = true, url and repository")
        return self


class Score(StrictModel):
    """One measured number, in percent, and who measured it how.

    `clip` is the same of the CLIP that the same people trained on the same data.
    """

    dataset: str
    metric: str
    value: float = Field(ge=0, le=100)
    clip: float | None = Field(default=None, ge=0, le=100, description="of the CLIP beside it, on the same data")
    by: str = Field(description="who measured it, and where it is published or with which command")


class Card(StrictModel):
    """What a model is, where it comes from and how well it does."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    summary: str
    architecture: str
    parameters: int | None = Field(default=None, gt=0)
    image_size: int = Field(gt=0)
    embed_dim: int = Field(gt=0)
    languages: list[str] = Field(default_factory=list)
    data: str
    license: str | None = Field(default=None, description="of the weights; left out where nobody states one")
    license_note: str | None = None
    homepage: str | None = None
    paper: str | None = None
    recipe: str | None = Field(default=None, description="the shipped recipe that trains it")
    source: Source
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of a bundled model's files")
    scores: list[Score] = Field(default_factory=list)


def card_names() -> list[str]:
    """The names of all cards, sorted; their contents are not read."""
    return sorted(path.stem for path in assets.zoo_folder().glob("*.toml"))


def card(name: str) -> Card:
    """The card of that name.

    Raises:
        UnknownModelError: there is none.
        ZooEntryError: it has wrong fields.
    """
    path = assets.zoo_folder() / f"{name}.toml"
    if name not in card_names():
        near = nearest(name, card_names())
        raise UnknownModelError(
            f"the zoo has no card {name!r}", f"did you mean {near!r}?" if near else "`cloob zoo list` shows them all"
        )
    return read_card(path)


@cache
def read_card(path: Path) -> Card:
    """Read and check one card.

    Raises:
        ZooEntryError: it is no TOML, has wrong fields, or is named otherwise than its file.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ZooEntryError(f"{path}: {problem}") from None
    read = parse(Card, data, str(path), ZooEntryError)
    if read.name != path.stem:
        raise ZooEntryError(f"{path}: the card is named '{read.name}', its file '{path.stem}'")
    return read


def all_cards() -> list[Card]:
    """All cards, sorted by name.

    Raises:
        ZooEntryError: one of them has wrong fields.
    """
    return [read_card(path) for path in sorted(assets.zoo_folder().glob("*.toml"))]
