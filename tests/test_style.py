"""Rules of prose that a program can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = {"what", "which", "where", "how", "whether", "why", "who", "when", "is", "are"}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "lineno", 1), text


def first_word(text: str) -> str:
    found = re.match(r"\W*(\w+)", text)
    return found[1].lower() if found else ""


@pytest.mark.parametrize("folder", ["cloob_cli", "recipes", "scripts", "tests"])
def test_docstrings_say_what_a_thing_is_or_does(folder: str) -> None:
    """They open with an imperative or a noun phrase, not with a question."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    questions = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in paths
        for line, text in docstrings(path)
        if first_word(text) in QUESTIONS
    ]
    assert questions == []


def test_the_check_notices_a_question(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text('"""Numbers."""\n\n\ndef one() -> int:\n    """`Which` number it is."""\n    return 1\n')
    assert [(line, first_word(text)) for line, text in docstrings(path)] == [(1, "numbers"), (4, "which")]
