"""The examples at the end of every `--help`: each command has some, and each is a command line that is accepted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
import typer.main

from cloob_cli.main import app


def commands(command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:  # type: ignore[no-untyped-def]
    """Every command and group: what is typed for it, and the end of its help."""
    yield " ".join(words), command.epilog or ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", ALL)
def test_every_command_shows_examples_that_are_accepted(command: str) -> None:
    lines = [line.strip() for line in ALL[command].splitlines() if line.startswith("  ")]
    assert lines, f"cloob {command} --help shows no example"
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "cloob"
        assert " ".join(words).startswith(command)
        accept(typer.main.get_command(app), words)


def accept(command, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    """Check the words as the command line would, without running anything."""
    context = command.make_context("cloob", list(words))
    while hasattr(command, "commands"):
        first = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"  # click 8.1
        name, command, rest = command.resolve_command(context, [*getattr(context, first), *context.args])
        context = command.make_context(name, rest, parent=context)
