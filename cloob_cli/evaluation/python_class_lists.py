"""Class names and prompt templates out of a Python file that defines them as lists; the file is read and never run.

CLIP and the programs that follow it publish theirs so: `NAME_classnames = ["...", ...]` and `NAME_templates = [...]` of
texts with `{}` or of functions `lambda c: f"a photo of a {c}."`.
"""

from __future__ import annotations

import ast

from cloob_cli.errors import DataError


def read_name_lists(text: str, where: str) -> dict[str, list[str]]:
    """The lists of texts that a Python file assigns, by name; templates have `{c}` where the class name goes.

    Raises:
        DataError: it is no Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as problem:
        raise DataError(f"{where} cannot be read as Python: {type(problem).__name__}") from None
    found = {}
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.List):
            continue
        texts = [_text(element) for element in statement.value.elts]
        for target in statement.targets:
            if isinstance(target, ast.Name) and all(text is not None for text in texts):
                found[target.id] = [text for text in texts if text is not None]
    return found


def names_and_templates(lists: dict[str, list[str]], name: str, where: str) -> tuple[list[str], list[str]]:
    """The class names and the templates that are called `name`.

    Raises:
        DataError: the file has no such lists.
    """
    try:
        return lists[f"{name}_classnames"], lists[f"{name}_templates"]
    except KeyError as missing:
        known = ", ".join(sorted(lists)) or "none"
        raise DataError(f"{where} has no list {missing.args[0]}", f"lists there: {known}") from None


def _text(element: ast.expr) -> str | None:
    """A literal text, or the text that a function of one argument formats; None for anything else."""
    if isinstance(element, ast.Constant) and isinstance(element.value, str):
        return element.value
    if not isinstance(element, ast.Lambda) or len(element.args.args) != 1:
        return None
    argument, body = element.args.args[0].arg, element.body
    if isinstance(body, ast.Constant) and isinstance(body.value, str):
        return body.value
    if not isinstance(body, ast.JoinedStr):
        return None
    parts = [_part(value, argument) for value in body.values]
    return None if None in parts else "".join(part for part in parts if part is not None)


def _part(value: ast.expr, argument: str) -> str | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    plain = isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Name) and value.value.id == argument
    return "{c}" if plain else None
