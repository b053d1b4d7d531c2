"""The display on a terminal: rows as they come, a form for narrow ones, progress, failures, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from command_line import cloob_here, environment
from terminal import SUPPORTED, Terminal
from tiny_model import save_images, save_tiny_model

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="pseudo-terminals")

LABELS = ["cat", "a sailboat on the open sea", "roof", "dog"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, labels, six images, and one that is none."""
    folder = tmp_path_factory.mktemp("terminal")
    save_tiny_model(folder / "model")
    save_images(folder / "images", 6)
    (folder / "images" / "0002b.png").write_bytes(b"no image")
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    return folder


ARGUMENTS = ["classify", "images", "-l", "labels.txt", "-m", "model", "--batch-size", "2"]


@cache
def expected(place: Path, *further: object) -> list[dict]:
    done = cloob_here(*ARGUMENTS, *further, "--json", "-q", cwd=place)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_wide_terminal_shows_a_row_a_line(place: Path) -> None:
    terminal = Terminal(*ARGUMENTS, cwd=place, columns=100)
    assert terminal.finish() == 3
    lines = terminal.lines()
    header = next(i for i, line in enumerate(lines) if line.startswith("path "))
    assert lines[header].split() == ["path", "label", "probability", "cosine"]
    rows = [line for line in lines if line.startswith("images/")]
    wanted = expected(place)
    assert [row.split()[0] for row in rows] == [one["path"] for one in wanted]
    start = lines[header].index("label")
    for row, one in zip(rows, wanted, strict=True):  # every batch stands below the same header
        assert row[start:].split("  ")[0] == one["label"]
        assert row.split()[-2:] == [f"{one['probability']:.4f}", f"{one['cosine']:.4f}"]
    assert "warning: skipped images/0002b.png: not an image in a known format" in lines
    assert any(line.startswith("classified 6 images in ") for line in lines)
    assert "7/7" in terminal.shown  # the bar counts what was skipped too


def test_a_narrow_terminal_shows_a_label_a_line(place: Path) -> None:
    terminal = Terminal(*ARGUMENTS, "--top-k", 3, cwd=place, columns=60)
    assert terminal.finish() == 3
    lines = terminal.lines()
    wanted = expected(place, "--top-k", 3)
    for one in wanted:
        at = lines.index(one["path"])
        choices = [line.split(maxsplit=2) for line in lines[at + 1 : at + 4]]
        assert choices == [[f"{c['probability']:.4f}", f"{c['cosine']:.4f}", c["label"]] for c in one["top"]]
    table = lines[lines.index("path") : lines.index(wanted[-1]["path"]) + 4]
    assert max(len(line) for line in table if not line.startswith("warning: ")) <= 60


def test_json_on_a_terminal_is_not_wrapped(place: Path) -> None:
    terminal = Terminal(*ARGUMENTS, "--json", cwd=place, columns=50)
    assert terminal.finish() == 3
    objects = [json.loads(line) for line in terminal.lines() if line.startswith("{")]
    assert objects == expected(place)


def test_rows_come_while_the_work_goes_on_and_ctrl_c_keeps_them(place: Path, tmp_path: Path) -> None:
    [large] = save_images(tmp_path / "many", 1, size=(3000, 2000), suffix=".jpg")
    for copy in range(600):
        os.link(large, large.with_name(f"copy{copy:03}.jpg"))
    arguments = ["classify", tmp_path / "many", "-l", "labels.txt", "-m", "model", "--batch-size", 4]
    terminal = Terminal(*arguments, cwd=place, columns=200)
    shown = terminal.read_until(lambda text: "0000.jpg" in text)
    assert terminal.process.poll() is None
    assert "copy599.jpg" not in shown
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130
    lines = terminal.lines()
    rows = [line for line in lines if line.startswith(str(tmp_path))]
    assert len(rows) == len(set(rows))
    assert f"error: interrupted after {len(rows)} of 601 images" in lines
    assert "hint: every row that was printed is whole" in lines
    assert "Traceback" not in terminal.shown


def test_ctrl_c_says_that_no_file_was_written(place: Path, tmp_path: Path) -> None:
    """(Of a batch that is finished more would be left than nothing: there is one batch, which takes seconds.)"""
    [large] = save_images(tmp_path / "many", 1, size=(3000, 2000), suffix=".jpg")
    for copy in range(600):
        os.link(large, large.with_name(f"copy{copy:03}.jpg"))
    out = tmp_path / "emb.npy"
    arguments = ["embed", tmp_path / "many", "-m", "model", "-o", out, "--batch-size", 1000]
    terminal = Terminal(*arguments, cwd=place, columns=200)
    terminal.read_until(lambda text: "/601" in text)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130
    assert f"hint: {out} was not written" in terminal.lines()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["many"]


@pytest.mark.parametrize("module", ["typer", "cloob_cli.commands.classify", "torch", "torch.nn", "cloob_cli.inference"])
def test_ctrl_c_while_modules_are_imported_ends_the_process_quietly(place: Path, tmp_path: Path, module: str) -> None:
    """A module on the way sends the process the signal, so that the moment is the same every time."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
""",
        encoding="utf-8",
    )
    found = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "cloob_cli", *ARGUMENTS]
    done = subprocess.run(
        command, cwd=place, env=environment(PYTHONPATH=found), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_long_search_shows_life(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.png").touch()
    patience = (
        "import cloob_cli.commands.inference_run as p; p._BAR_DELAY = 0.0; from cloob_cli.__main__ import run; run()"
    )
    terminal = Terminal("embed", tmp_path, "-o", tmp_path / "x.npy", "-m", "nothing", cwd=tmp_path, code=patience)
    assert terminal.finish() == 2
    assert re.search(r"looking for images.*2,?000", terminal.shown)


def test_a_second_ctrl_c_while_the_first_is_answered_makes_no_traceback(tmp_path: Path) -> None:
    """The error is shown by Rich, whose import sends the second signal."""
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from cloob_cli import __main__, main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "rich.console":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
def interrupted(**_):
    os.kill(os.getpid(), signal.SIGINT)
import cloob_cli.diagnosis
cloob_cli.diagnosis.diagnose = interrupted
__main__.run()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr
