"""Processes end when the launcher that started them is killed, and for no other reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest
from command_line import environment
from tiny_model import RESNET, save_images, save_tiny_model
from tiny_run import write_pairs, write_recipe

from cloob_cli import launch

posix = pytest.mark.skipif(os.name == "nt", reason="there a process keeps its parent's number")

# A program that starts another one as a launcher does, tells its number and waits for it.
STARTER = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"LOCAL_RANK": "0"})
print(process.pid, flush=True)
process.wait()
"""
WORKER = """
import time
from cloob_cli import launch
launch._INTERVAL = 0.01
if launch.end_with_launcher():
    print("watching", flush=True)
    time.sleep(3600)
print("not watching")
"""


def started(place: Path, name: str) -> tuple[subprocess.Popen[str], psutil.Process, str]:
    """A starter of this name, its worker, and what the worker said."""
    (place / name).write_text(STARTER)
    starter = subprocess.Popen(
        [sys.executable, place / name, WORKER],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert starter.stdout
    return starter, psutil.Process(int(starter.stdout.readline())), starter.stdout.readline()


@posix
def test_a_process_ends_when_its_launcher_is_killed(tmp_path: Path) -> None:
    launcher, worker, said = started(tmp_path, "torchrun")
    try:
        assert said == "watching\n"
        launcher.kill()
        out, err = launcher.communicate(timeout=60)  # to the end of their streams, which are the worker's too
    finally:
        if worker.is_running():
            worker.kill()
    assert (out, err) == ("", "error: the launcher of this process is gone, so it ends\n")


@posix
def test_a_shell_with_a_launchers_variables_is_no_launcher(tmp_path: Path) -> None:
    """It may end long before what it started with nohup."""
    shell, _, said = started(tmp_path, "shell")
    assert said == "not watching\n"
    assert shell.communicate(timeout=60) == ("", "")


def test_without_a_launchers_variables_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch._LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "_is_launcher", lambda process: True)
    assert launch.end_with_launcher() is None


class Ended(BaseException):
    """Stands for the end of the process."""


def test_only_a_change_of_the_own_parent_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [7] * 50 + [1]  # whatever becomes of the launcher's own parent, this one stays the same
    looks: list[float] = []
    monkeypatch.setattr(launch.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(launch.time, "sleep", looks.append)
    with mock.patch.object(launch.os, "_exit", side_effect=Ended) as ended, pytest.raises(Ended):
        launch._watch(7)
    ended.assert_called_once_with(1)
    assert (looks, parents) == ([launch._INTERVAL] * 50, [])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/usr/bin/python3", "/usr/bin/torchrun", "--standalone", "-m", "cloob_cli"], True),
        (["/usr/bin/python3.11", "-m", "torch.distributed.run", "-m", "cloob_cli"], True),
        (["python", "/lib/torch/distributed/run.py", "train.py"], True),
        (["Python", "/usr/bin/accelerate", "launch", "-m", "cloob_cli"], True),
        (["python", "-m", "accelerate.commands.launch", "--cpu"], True),
        (["/bin/bash", "torchrun"], False),
        (["bash", "-c", "torchrun -m cloob_cli train RECIPE"], False),
        (["python", "/home/me/my_torchrun"], False),
        (["python", "-m", "cloob_cli", "embed", "photos/torchrun.npy"], False),
        ([], False),
    ],
)
def test_launchers_are_known_by_their_command_line(command: list[str], expected: bool) -> None:
    with mock.patch("psutil.Process") as process:
        process.return_value.cmdline.return_value = command
        assert launch._is_launcher(7) is expected


def test_a_parent_that_cannot_be_looked_at_is_no_launcher() -> None:
    with mock.patch("psutil.Process", side_effect=psutil.AccessDenied(7)):
        assert launch._is_launcher(7) is False


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 8),
        ({"RANK": "0", "WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "?", "MPI_LOCALNRANKS": "2"}, 2),
        ({"RANK": "0", "WORLD_SIZE": "16"}, 16),
        ({"LOCAL_WORLD_SIZE": "8"}, 1),
        ({}, 1),
    ],
)
def test_the_launcher_says_how_many_processes_share_the_machine(variables: dict[str, str], expected: int) -> None:
    with mock.patch.dict(os.environ, variables, clear=True):
        assert launch.local_count() == expected


# Runs cloob until the processes have found each other and exchange something; then they wait for one that never comes.
WAITING = """
import os, time
from pathlib import Path
import torch.distributed
exchange = torch.distributed.all_gather_object
def waiting(*arguments, **options):
    Path(f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    if os.environ["RANK"] == "1":
        time.sleep(3600)
    return exchange(*arguments, **options)
torch.distributed.all_gather_object = waiting
from cloob_cli.main import run
run()
"""


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
@posix
@pytest.mark.parametrize("command", ["embed", "eval", "train"])
def test_no_command_outlives_a_launcher_that_is_killed(command: str, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    save_tiny_model(tmp_path / "model", RESNET)
    save_images(tmp_path / "images" / "red", 8)
    write_recipe(tmp_path / "recipe.toml", write_pairs(tmp_path / "pairs"))
    words = {
        "embed": ["images", "-o", "out/result.npy", "-m", "model"],
        "eval": ["model", "images", "--no-cache", "-o", "out/result.json"],
        "train": ["recipe.toml", "-o", "out"],
    }
    (tmp_path / "out").mkdir()
    launcher = subprocess.Popen(
        [*LAUNCHER, "waiting.py", command, *words[command], "--device", "cpu"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    marks = [tmp_path / f"{rank}.pid" for rank in range(2)]
    try:
        while not all(mark.exists() and mark.read_text() for mark in marks):
            assert launcher.poll() is None, launcher.communicate()[1]
            time.sleep(0.1)
        launcher.kill()
        out, err = launcher.communicate(timeout=60)  # to the end of their streams, which are the workers' too
    finally:
        for mark in marks:
            if mark.exists() and psutil.pid_exists(int(mark.read_text())):
                os.kill(int(mark.read_text()), signal.SIGKILL)
    assert out == ""
    assert "error: the launcher of this process is gone, so it ends" in err
    results = {".npy", ".parquet", ".json", ".safetensors"}
    assert [path for path in (tmp_path / "out").rglob("*") if path.suffix in results] == []
