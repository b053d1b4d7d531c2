"""Shell completion, asked for as bash asks: names only, and quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

from cloob_cli import assets
from cloob_cli.checkpoint.folder import MODEL_FILES
from cloob_cli.commands import completion
from cloob_cli.core.device import PRECISIONS
from cloob_cli.registry import entries

ASK = """
import sys
sys.argv[0] = "cloob"
from cloob_cli.__main__ import run
try:
    run()
finally:
    print("LOADED", sorted({"torch", "numpy", "huggingface_hub", "rich"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A zoo with one installed model."""
    folder = tmp_path / "models" / "my-own"
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (folder / name).write_text("{}")
    return tmp_path


def offered(line: str, home: Path) -> list[str]:
    words = line.split(" ")
    env = environment(
        CLOOB_HOME=str(home), _CLOOB_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "LOADED []\n"
    return done.stdout.split()


def test_names_of_models(home: Path) -> None:
    assert offered("cloob classify --model ", home) == [assets.BUNDLED_MODEL, "my-own"]
    assert offered("cloob embed -m my", home) == ["my-own"]
    assert offered("cloob zoo pull cloob-rn50-", home) == [
        name for name in entries.entry_names() if name.startswith("cloob-rn50-")
    ]
    assert offered("cloob zoo rm ", home) == ["my-own"]


def test_recipes_devices_and_precisions(home: Path) -> None:
    assert offered("cloob train ", home) == assets.shipped_recipes()
    assert offered("cloob classify --device c", home)[:2] == ["cpu", "cuda"]
    assert offered("cloob embed --precision ", home) == ["auto", *PRECISIONS]


def test_a_path_is_left_to_the_shell(home: Path) -> None:
    assert offered(f"cloob classify --model {home}{os.sep}", home) == []


def test_the_precisions_are_those_that_are_accepted() -> None:
    assert set(completion.PRECISIONS) == {"auto", *PRECISIONS}
