"""The pages that are made from the program say what the program says, and what the README shows of it is true."""

from __future__ import annotations

import html
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from command_line import environment
from script_module import script_module

from cloob_cli.main import app

ROOT = Path(__file__).resolve().parents[1]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def pinned(package: str) -> str:
    """The release of a package that constraints.txt names."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1]


def test_the_reference_pages_are_up_to_date() -> None:
    if (here := importlib.metadata.version("typer")) != (there := pinned("typer")):
        pytest.skip(f"docs/cli.md is in the words of typer {there}, this is {here}")
    command = [sys.executable, str(ROOT / "scripts" / "make_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_diagram_of_imports_and_the_tree_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "import_graph.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_argument_is_named_in_capitals() -> None:
    """In the usage lines and in the lists below them, as programs have it since the oldest."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    usages = re.findall(r"^\$ cloob .*\[OPTIONS\](.*)$", page, re.MULTILINE)
    assert len(usages) > 20
    assert [usage for usage in usages if usage != usage.upper()] == []


def test_every_file_that_the_pages_name_exists() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    text = re.sub(r"```text\n.*?```", "", text, flags=re.DOTALL)  # the tree: made from the files themselves
    named = re.findall(r"(?<![\w/.-])(\w+/[\w/]+\.py)\b", text)
    assert len(named) > 40
    assert [name for name in named if not any((root / name).is_file() for root in (ROOT, ROOT / "cloob_cli"))] == []


def test_lists_of_commands_show_whole_sentences() -> None:
    """A list gives the first sentence of a command's help, on pages no more of it than 45 characters."""
    commands = [typer.main.get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
    assert len(commands) > 20
    assert [text for each in commands[1:] if (text := each.get_short_help_str(45)).endswith("...")] == []


def test_every_command_is_in_the_readme() -> None:
    assert app.registered_commands
    for command in app.registered_commands:
        assert f"cloob {command.name}" in readme()


def test_the_readme_fits_a_few_screens() -> None:
    assert len(readme().splitlines()) <= 150


def test_the_readme_shows_the_classification_of_the_example_images() -> None:
    """docs/classify.svg has a line for each of them; its numbers are those of the day when it was drawn."""
    assert "(docs/classify.svg)" in readme()
    drawing = (ROOT / "docs" / "classify.svg").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]*>", "\n", drawing)).replace("\xa0", " ")
    assert "cloob classify examples/pictures --labels examples/labels.txt" in shown
    for image in (ROOT / "examples" / "pictures").glob("*.png"):
        assert f"examples/pictures/{image.name} " in shown
    # The lines around the table are in the words that the command has now.
    assert re.search(r"model cloob-xs-pictograms on \w+( \(\d+ threads?\))? in \w+\n", shown)
    assert re.search(r"classified 24 images in [\d.]+ s \([\d.]+ a second\)\n", shown)
    assert "@font-face" not in drawing  # nothing is fetched to show it


def test_a_row_of_benchmarks_fits_the_table() -> None:
    module = script_module("record_benchmark")
    page = module.PAGE.read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("|")]
    row = {name.strip(): str(index) for index, name in enumerate(table[0].strip("|").split("|"))}
    added = [line for line in module.with_row(page, row).splitlines() if line.startswith("|")]
    assert added == [*table, f"| {' | '.join(row.values())} |"]
    with pytest.raises(SystemExit):
        module.with_row(page, row | {"another": "1"})


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
