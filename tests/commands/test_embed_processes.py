"""`cloob embed` in two processes of a launcher writes the files of one process, and a kill loses no finished batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import cloob_here, environment
from tiny_model import RESNET, save_images, save_tiny_model

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
KILLED = """
import os
from cloob_cli.inference.index import journal
append = journal.Journal.append
def killed(self, *arguments):
    append(self, *arguments)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
journal.Journal.append = killed
from cloob_cli.main import run
run()
"""


def words(output: str) -> list[str]:
    return ["embed", "images", "-o", output, "-m", "model", "--batch-size", "4", "--device", "cpu"]


def launched(place: Path, *program: str) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCHER, *program, *words("two.npy")]
    return subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=200)


def check_files(place: Path) -> None:
    """Compare two.* with what one process writes, to the byte."""
    assert cloob_here(*words("one.npy"), cwd=place).returncode == 3
    for suffix in (".npy", ".parquet", ".failures.jsonl"):
        assert (place / f"two{suffix}").read_bytes() == (place / f"one{suffix}").read_bytes()
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []


def make(place: Path) -> None:
    save_tiny_model(place / "model", RESNET)
    for number, path in enumerate(save_images(place / "images", 37)):
        if number in (3, 6, 10):  # of both processes
            path.write_bytes(b"broken")


def test_two_processes_write_the_files_of_one(tmp_path: Path) -> None:
    make(tmp_path)
    done = launched(tmp_path, "-m", "cloob_cli")
    assert done.returncode == 0, done.stderr  # a launcher takes every other code for a failure
    assert done.stdout.splitlines() == ["two.npy", "two.parquet", "two.failures.jsonl"]
    assert done.stderr.count("embedded 34 images") == 1
    assert done.stderr.count("warning: skipped images") == 3
    check_files(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_process_is_an_error_and_its_batches_are_kept(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "killed.py").write_text(KILLED)
    done = launched(tmp_path, "killed.py")
    assert done.returncode == 1
    assert "another process" in done.stderr
    assert "the same command goes on from" in done.stderr
    assert list(tmp_path.glob("two.*")) == []
    again = launched(tmp_path, "-m", "cloob_cli")
    assert again.returncode == 0, again.stderr
    assert "images are known" in again.stderr
    check_files(tmp_path)
