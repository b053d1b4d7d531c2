"""The schema of sources.toml: packages, icon sets and evaluation sets, closed and checked, licenses from a list."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloob_cli.errors import RecipeError
from cloob_cli.strict_model import StrictModel, parse

# Licenses (SPDX) under which drawings and words may be copied, changed and passed on, with attribution at most.
PERMISSIVE = (
    "0BSD",
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "OFL-1.1",
    "Unlicense",
)

Kind = Literal["icon", "color-icon", "emoji", "flag", "logo"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Licensed(StrictModel):
    """Something that has a license of the list."""

    license: str

    @model_validator(mode="after")
    def _permissive(self) -> Licensed:
        if self.license not in PERMISSIVE:
            raise ValueError(f"license {self.license} is not one of {', '.join(PERMISSIVE)}")
        return self


class Package(Licensed):
    """A package of the npm registry, to the byte.

    `use` says what it is read for: `icons` (the Iconify collection, json/SET.json; exactly one package), `digits`,
    `emoji`, or the tags of one icon set in that set's own format.
    """

    name: Annotated[str, Field(pattern=r"^(@[a-z0-9._-]+/)?[a-z0-9._-]+$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+[\w.+-]*$")]
    integrity: Annotated[str, Field(pattern=r"^sha512-[A-Za-z0-9+/]+={0,2}$")]
    use: Literal["icons", "digits", "emoji", "lucide", "tabler", "mdi", "fontawesome", "ionicons"]


class IconSet(Licensed):
    """An icon set of an Iconify collection.

    Attributes:
        name: the set's prefix.
        kind: of its drawings; flags are found by their names in sets of emoji, folders and files in sets of logos.
        use: `train`, or the name of the evaluation set that it makes.
        style: a word for drawings whose names say no style ("line").
        fixed_style: `style` stands for all of them, whatever their names say.
        numbered: numbers at the end of names count variants of one subject and are left out of captions.
        only: take only names that end so.
        tags: the package whose tags describe the set.
    """

    name: Name
    kind: Kind
    use: Name = "train"
    style: str = ""
    fixed_style: bool = False
    numbered: bool = False
    only: str = ""
    tags: str = ""


class Evaluation(StrictModel):
    """An evaluation set: its name, its templates, and for digits the number of images of a class."""

    name: Name
    templates: Annotated[list[str], Field(min_length=1)]
    images_per_class: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _placeholder(self) -> Evaluation:
        if not all("{c}" in template for template in self.templates):
            raise ValueError("every template needs {c}")
        return self


class LeftOut(StrictModel):
    """A set that stands beside the others but is not used, and why."""

    name: Name
    reason: str


class Limits(StrictModel):
    """Bounds of what is taken.

    Attributes:
        seed: every choice is a hash of it and of a drawing's name.
        per_set: drawings of one subject in one icon set (emoji: 1).
        per_label: drawings of one subject in all sets.
        near: the largest distance of perceptual hashes (near.py) at which two drawings are near.
    """

    seed: str
    per_set: Annotated[int, Field(ge=1)]
    per_label: Annotated[int, Field(ge=1)]
    near: Annotated[float, Field(ge=0, lt=1)]


class Sources(StrictModel):
    """The whole of sources.toml."""

    limits: Limits
    packages: Annotated[list[Package], Field(min_length=1)]
    sets: Annotated[list[IconSet], Field(min_length=1)]
    evaluation: tuple[Evaluation, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> Sources:
        if [p.use for p in self.packages].count("icons") != 1:
            raise ValueError("one package must be used for icons")
        for what, names in (
            ("use of packages", [str(p.use) for p in self.packages]),
            ("package", [p.name for p in self.packages]),
            ("set", [s.name for s in self.sets] + [s.name for s in self.left_out]),
            ("evaluation set", [e.name for e in self.evaluation]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise ValueError(f"the {what} {twice} stands there twice")
        known = {e.name for e in self.evaluation if e.images_per_class is None}
        for one in self.sets:
            if one.use != "train" and one.use not in known:
                raise ValueError(f"set {one.name}: there is no evaluation set {one.use}")
            if one.tags and one.tags not in {p.use for p in self.packages}:
                raise ValueError(f"set {one.name}: no package has the tags of {one.tags}")
        return self


def read_sources(path: Path) -> Sources:
    """Read and check a sources file.

    Raises:
        RecipeError: it is no TOML, or has wrong keys, values or licenses.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise RecipeError(f"{path}: {problem}") from None
    return parse(Sources, data, str(path), RecipeError)
