"""Suites: data sets that are measured together, `recipes/eval/NAME.toml`, with the scores that others published."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, model_validator

from cloob_cli import assets
from cloob_cli.errors import RecipeError, UsageError
from cloob_cli.evaluation.results import Task
from cloob_cli.strict_model import StrictModel, nearest, parse


class SuiteSet(StrictModel):
    """A data set of a suite.

    `published` maps models to the accuracy that was published, in percent.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    source: str = Field(description="https address of a zip, hf://ORG/REPO[@REVISION], or a path below --data")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the zip")
    task: Task | None = Field(default=None, description="none: zero-shot for labels, retrieval for captions")
    split: str = "test"
    names: str | None = Field(default=None, description="which lists of `names_from` are its class names and templates")
    classes: list[str] | None = Field(default=None, description="class names, in the order of the classes")
    templates: list[str] | None = None
    published: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_place_of_names(self) -> SuiteSet:
        if self.names and (self.classes or self.templates):
            raise ValueError("names = ... stands for classes and templates: give one or the other")
        return self


class Suite(StrictModel):
    """A named list of data sets."""

    name: str
    summary: str
    published_by: str | None = Field(default=None, description="where the published scores stand")
    names_from: str | None = Field(
        default=None, pattern=r"^https?://", description="a Python file with lists of class names and templates"
    )
    datasets: list[SuiteSet] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        names = [one.name for one in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError("two data sets have the same name")
        if not self.names_from and any(one.names for one in self.datasets):
            raise ValueError("names = ... needs names_from")
        return self


def find_suite(name: str) -> Path | None:
    """The file of a suite: a path that ends in .toml, or a shipped suite's name where nothing else is called so.

    Raises:
        UsageError: there is no such .toml file.
    """
    path = Path(name)
    if path.suffix == ".toml":
        shipped = assets.suites_folder() / path.name
        if not path.exists() and not shipped.exists():
            near = nearest(path.stem, shipped_suites())
            raise UsageError(f"there is no suite {name}", f"did you mean {near}?" if near else None)
        return path if path.exists() else shipped
    shipped = assets.suites_folder() / f"{name}.toml"
    return shipped if name in shipped_suites() and not path.exists() else None


def shipped_suites() -> list[str]:
    """The names of the shipped suites, sorted."""
    return sorted(path.stem for path in assets.suites_folder().glob("*.toml"))


def read_suite(path: Path) -> Suite:
    """Read and check a suite.

    Raises:
        RecipeError: it is no TOML, or has wrong keys or values.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise RecipeError(f"{path}: {problem}") from None
    return parse(Suite, data, str(path), RecipeError)
