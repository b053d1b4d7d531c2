"""Write docs/cli.md from the commands' own help, and docs/recipe.md from the recipe's schema.

python scripts/make_reference.py            writes both
python scripts/make_reference.py --check    exit code 1 where one of them is out of date
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import typing
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cloob_cli.recipe import Recipe
from cloob_cli.strict_model import StrictModel

DOCS = Path(__file__).resolve().parents[1] / "docs"

RECIPE_HEAD = """\
# What a recipe may say

A recipe is a TOML file. Every key is checked: an unknown one is an error that names the nearest known one.
`cloob train RECIPE --dry-run` prints the recipe as it is understood, `--set section.key=value` changes a key.
This page is made from the schema by `python scripts/make_reference.py`.
"""


def main() -> int:
    pages = {DOCS / "cli.md": cli_reference(), DOCS / "recipe.md": recipe_reference()}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
        for name in stale:
            print(f"docs/{name} is out of date: run python scripts/make_reference.py")
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


def cli_reference() -> str:
    """Typer's own documentation of all commands."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "cli.md"
        command = [sys.executable, "-m", "typer", "cloob_cli.main", "utils", "docs", "--name", "cloob"]
        subprocess.run([*command, "--output", str(page)], check=True, capture_output=True)
        return _fence_examples(page.read_text(encoding="utf-8"))


def _fence_examples(page: str) -> str:
    """Typer copies a command's last paragraph as it is; here its lines become a block."""

    def block(found: re.Match[str]) -> str:
        lines = "".join(f"$ {line.strip()}\n" for line in found[1].splitlines())
        return f"**Examples**:\n\n```console\n{lines}```\n"

    return re.sub(r"\x08\nExamples:\n((?:  .*\n)+)", block, page)


def recipe_reference() -> str:
    """The sections of a recipe and their keys, in the order of the schema."""
    parts = [RECIPE_HEAD]
    parts += _section("The recipe", "", Recipe)
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, prefix: str, section: type[StrictModel]) -> list[str]:
    heading = f"## `[{prefix}]`" if prefix else f"## {title}"
    lines = [heading, "", " ".join((section.__doc__ or "").split()), ""]
    inner, rows = [], []
    for name, field in section.model_fields.items():
        nested = _nested(field.annotation)
        if nested:
            inner += _section(name, f"{prefix}.{name}" if prefix else name, nested)
        else:
            rows.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description or ''} |")
    if rows:
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows, ""]
    return lines + inner


def _nested(annotation: Any) -> type[StrictModel] | None:
    candidates = [annotation, *typing.get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, StrictModel)), None)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value!r}`".replace("'", '"') for value in arguments)
    if origin in (list, tuple) and arguments:
        return f"list of {_type(arguments[0])}"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if arguments:
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    words = {str: "text", int: "integer", float: "number", bool: "true, false", dict: "table"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]  # none takes data
    if value is None or value is PydanticUndefined:
        return "none"
    return f"`{value!r}`".replace("'", '"').replace("True", "true").replace("False", "false")


if __name__ == "__main__":
    sys.exit(main())
