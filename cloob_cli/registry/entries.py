"""Zoo entries: the published facts of every released model, one `zoo/NAME.toml` each."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cloob_cli import assets
from cloob_cli.errors import RegistryError, UnknownModelError, ZooEntryError
from cloob_cli.strict_model import StrictModel, nearest, parse

if TYPE_CHECKING:
    from cloob_cli.core.model_config import ModelConfig

Format = Literal["cloob", "mljku", "crowsonkb", "rinna", "open_clip", "transformers", "openai"]


class Source(StrictModel):
    """The place of the original: `bundled` in the package, a `url`, or a `repository` on the Hugging Face Hub.

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


class Measurement(StrictModel):
    """The measurement of a score: the mean of `metric` over data sets of a suite (`recipes/eval/SUITE.toml`)."""

    suite: str
    sets: list[str] = Field(min_length=1)
    metric: str = "acc1"


class Score(StrictModel):
    """One measured number, in percent, and who measured it how.

    `clip` is the same of the CLIP that the same people trained on the same data.
    """

    dataset: str
    metric: str
    value: float = Field(ge=0, le=100)
    clip: float | None = Field(default=None, ge=0, le=100, description="of the CLIP beside it, on the same data")
    by: str = Field(description="who measured it, and where it is published or with which command")
    measured: Measurement | None = Field(default=None, description="how `cloob zoo verify --scores` measures it again")


class ZooEntry(StrictModel):
    """A zoo entry: the facts of a model, its source and its scores; what nobody published is left out."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    summary: str
    objective: Literal["cloob", "infoloob", "clip"] = Field(default="cloob", description="the loss that trained it")
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
    earlier_names: list[str] = Field(default_factory=list, description="under which it is found as well")
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of a bundled model's files")
    scores: list[Score] = Field(default_factory=list)


def entry_names() -> list[str]:
    """The names of all entries, sorted; their contents are not read."""
    return sorted(path.stem for path in assets.zoo_folder().glob("*.toml"))


def current_name(name: str) -> str:
    """The name of the model that was once called `name`; any other name as it is."""
    if name in entry_names():
        return name
    return next((entry.name for entry in all_entries() if name in entry.earlier_names), name)


def find_entry(name: str) -> ZooEntry:
    """The entry of that name, or of the model that was once called so.

    Raises:
        UnknownModelError: there is none.
        ZooEntryError: it has wrong fields.
    """
    name = current_name(name)
    path = assets.zoo_folder() / f"{name}.toml"
    if name not in entry_names():
        near = nearest(name, entry_names())
        raise UnknownModelError(
            f"the zoo has no entry {name!r}", f"did you mean {near!r}?" if near else "`cloob zoo list` shows them all"
        )
    return read_entry(path)


@cache
def read_entry(path: Path) -> ZooEntry:
    """Read and check one entry.

    Raises:
        ZooEntryError: it is no TOML, has wrong fields, or is named otherwise than its file.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ZooEntryError(f"{path}: {problem}") from None
    read = parse(ZooEntry, data, str(path), ZooEntryError)
    if read.name != path.stem:
        raise ZooEntryError(f"{path}: the entry is named '{read.name}', its file '{path.stem}'")
    return read


def all_entries() -> list[ZooEntry]:
    """All entries, sorted by name.

    Raises:
        ZooEntryError: one of them has wrong fields.
    """
    return [read_entry(path) for path in sorted(assets.zoo_folder().glob("*.toml"))]


def score_rows(entry: ZooEntry) -> list[dict[str, str]]:
    """The rows of a table of an entry's scores, with a column for the CLIP trained beside the model, where one was."""
    beside = any(score.clip is not None for score in entry.scores)
    rows = []
    for score in entry.scores:
        row = {"data": score.dataset, "measure": score.metric, "score": f"{score.value:g} %"}
        if beside:
            row["CLIP, same data"] = f"{score.clip:g} %" if score.clip is not None else ""
        rows.append(row | {"by": score.by})
    return rows


def refuse_taken_name(name: str, entry: ZooEntry | None = None, remedy: str = "give another name with --name") -> None:
    """Raise RegistryError where `name` is an entry's and the model is not that entry's.

    An entry's scores, license and data are shown for whatever is installed under its name.

    Args:
        entry: the entry that describes where the model comes from, if one does.
        remedy: the first half of the hint.
    """
    # File systems that do not tell upper from lower case would take both for one folder.
    taken = next((known for known in entry_names() if known == current_name(name.casefold())), None)
    if taken and (entry is None or entry.name != name):
        raise RegistryError(
            f"{name!r} is the name of a model of the zoo, and this is another one, or cannot be shown to be that one",
            f"{remedy}; `cloob zoo pull {taken}` installs the zoo's own",
        )


def entry_of_files(name: str, hashes: Mapping[str, str]) -> ZooEntry | None:
    """The entry of that name, where it lists exactly these files with these sha256 hashes; else None."""
    if name not in entry_names():
        return None
    entry = find_entry(name)
    return entry if entry.files and entry.files == dict(hashes) else None


def check_shape(config: ModelConfig, entry: ZooEntry) -> None:
    """Raise RegistryError where a model cannot be the one that an entry describes."""
    found, said = (config.vision.image_size, config.embed_dim), (entry.image_size, entry.embed_dim)
    if found != said:
        raise RegistryError(
            f"this is not {entry.name}: {found[0]} pixels and {found[1]} dimensions, where its entry says "
            f"{said[0]} and {said[1]}"
        )
