"""SKILL.md, which tells coding agents how to use cloob, says nothing that the command line would refuse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from cloob_cli.main import app

TEXT = (Path(__file__).resolve().parents[1] / "SKILL.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
LINES = [line[line.index("cloob ") :] for block in BLOCKS for line in block.splitlines() if line]


def options(command) -> set[str]:  # type: ignore[no-untyped-def]
    """The names of all options of a command and of those below it."""
    own = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    return own.union(*(options(inner) for inner in getattr(command, "commands", {}).values()))


def test_it_begins_as_skills_do() -> None:
    assert re.match(r"---\nname: [a-z-]+\ndescription: .{20,1024}\n---\n", TEXT)
    assert len(TEXT.splitlines()) < 100


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_accepted(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "cloob"
    command = typer.main.get_command(app)
    context = command.make_context("cloob", list(words))
    while hasattr(command, "commands"):
        first = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"  # click 8.1
        name, command, rest = command.resolve_command(context, [*getattr(context, first), *context.args])
        context = command.make_context(name, rest, parent=context)


def test_every_option_in_the_text_exists() -> None:
    known = options(typer.main.get_command(app)) | {"--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"find photos.*\|", "", TEXT)))
    assert len(named) > 15
    assert named <= known


def test_the_exit_codes_are_those_of_the_readme() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    for code in ("0 done", "1 failed", "2 wrong usage", "3 done, but some inputs were skipped", "130 interrupted"):
        assert code in " ".join(TEXT.split())
        assert code in " ".join(readme.split())
