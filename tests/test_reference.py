"""The pages that are made from the program say what the program says, and the README's image of it is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from command_line import environment

from cloob_cli.main import app

ROOT = Path(__file__).resolve().parents[1]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_reference_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "make_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_diagram_of_imports_and_the_tree_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "import_graph.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_in_the_readme() -> None:
    assert app.registered_commands
    for command in app.registered_commands:
        assert f"cloob {command.name}" in readme()


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
