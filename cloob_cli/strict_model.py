"""Closed, checked configuration: one base class and one way to say what is wrong with a file.

Recipes, zoo entries and model configurations are all `StrictModel`s: an unknown key is an error that names the
nearest known one, a wrong type is an error that names the key, and both are a single line.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cloob_cli.errors import CloobError
from cloob_cli.text_format import printable

StrictModelType = TypeVar("StrictModelType", bound="StrictModel")


class StrictModel(BaseModel):
    """A pydantic model that is frozen and closed: keys that it does not declare are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FiniteModel(StrictModel):
    """The same without infinite numbers and those that are none."""

    model_config = ConfigDict(allow_inf_nan=False)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely meant, or None where nothing is near."""
    candidates = list(known)
    matches = difflib.get_close_matches(name.lower(), [c.lower() for c in candidates], n=1, cutoff=0.6)
    return next((c for c in candidates if matches and c.lower() == matches[0]), None)


def parse(model: type[StrictModelType], data: Any, where: str, error: type[CloobError]) -> StrictModelType:
    """Validate `data` as `model`.

    Args:
        where: what the data is called in messages, usually a file's path.
        error: the class to raise; its message is one line and names the first wrong key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        raise _error(model, problem.errors(include_url=False), where, error) from None


def incomplete(
    model: type[StrictModel],
    data: Any,
    sections: Iterable[tuple[str, ...]],
    where: str,
    error: type[CloobError],
) -> list[tuple[str, ...]]:
    """Validate `data` as `model`, except for what is still to come into `sections`; the arguments are those of `parse`.

    Returns:
        The sections that lack keys, or whose keys do not go together as they stand.
    """
    try:
        model.model_validate(data)
    except ValidationError as problem:
        found = {
            section: [e for e in problem.errors(include_url=False) if _may_come(e, section)] for section in sections
        }
        excused = [e for errors in found.values() for e in errors]
        if rest := [e for e in problem.errors(include_url=False) if e not in excused]:
            raise _error(model, rest, where, error) from None
        return [section for section, errors in found.items() if errors]
    return []


def _may_come(problem: ErrorDetails, section: tuple[str, ...]) -> bool:
    if problem["type"] == "missing":
        return problem["loc"][:-1] == section
    return problem["type"] == "value_error" and problem["loc"] == section


def _error(model: type[StrictModel], errors: list[ErrorDetails], where: str, error: type[CloobError]) -> CloobError:
    message, hint = _explain(model, errors)
    return error(f"{where}: {printable(message)}", hint and printable(hint))


def _explain(model: type[StrictModel], errors: list[ErrorDetails]) -> tuple[str, str | None]:
    # An unknown key first: a misspelt key often causes a second complaint (the right one is missing).
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = _location(model, first["loc"])
    if first["type"] in {"extra_forbidden", "missing"}:  # its last part is a key, whatever it looks like
        location = [*_location(model, first["loc"][:-1]), str(first["loc"][-1])]
    key = ".".join(location)
    # A value of several allowed kinds has a complaint from each of them: they are one.
    alike = [e for e in errors if _location(model, e["loc"]) == location]
    more = f" (and {len(errors) - len(alike)} more)" if len(errors) > len(alike) else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = nearest(location[-1], known)
        hint = (
            f"did you mean '{'.'.join([*location[:-1], near])}'?" if near else f"known keys: {', '.join(sorted(known))}"
        )
        return f"unknown key '{key}'{more}", hint
    if first["type"] == "missing":
        return f"the key '{key}' is missing{more}", None
    texts = [e["msg"].removeprefix("Value error, ") for e in alike]
    text = ", or ".join(text[:1].lower() + text[1:] for text in texts)
    given = first.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return (f"'{key}': {text}{shown}{more}" if key else f"{text}{more}"), None


def _location(model: type[StrictModel], parts: tuple[str | int, ...]) -> list[str]:
    return [str(part) for part in parts if not _is_union_tag(model, part)]


def _is_union_tag(model: type[StrictModel], part: str | int) -> bool:
    # pydantic puts the tried alternative of a union into the location ("int", "list[str]", "literal['auto']").
    return isinstance(part, str) and (part in {"int", "constrained-int", "float", "str", "bool"} or "[" in part)


def _known_keys(model: type[StrictModel], location: list[str]) -> list[str]:
    current: type[StrictModel] = model
    for part in location:
        field = current.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            continue  # an index into a list of sections
        current = inner
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any) -> type[StrictModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _model_in(arg))), None)
