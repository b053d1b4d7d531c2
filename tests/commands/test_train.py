"""`cloob train` as a process: results, exit codes, signals, resuming, and two processes under accelerate."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from command_line import COMMAND, cloob, cloob_here, environment
from margins import close
from safetensors.torch import load_file
from tiny_run import write_pairs, write_recipe

from cloob_cli.training.metrics_file import read_rows

TWO_PROCESSES = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "cloob_cli",
]  # fmt: skip
FORKED = [sys.executable, Path(__file__).parents[1] / "helpers" / "forked_processes.py", ".", "2"]
CHECKPOINTS = {"train__checkpoint_every": 20, "train__keep_checkpoints": 3}
# Kills the process 10 steps after the first checkpoint.
KILLED = """
import os
from cloob_cli.training.metrics_file import MetricsFile
add = MetricsFile.add
def killed(self, event):
    add(self, event)
    if event.step == 30:
        os.kill(os.getpid(), 9)
MetricsFile.add = killed
from cloob_cli.main import run
run()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs and three recipes; `straight` is a whole run of the middle one."""
    folder = tmp_path_factory.mktemp("train")
    write_pairs(folder / "pairs")
    write_recipe(folder / "short.toml", "pairs")
    write_recipe(folder / "middle.toml", "pairs", train__steps=60, **CHECKPOINTS)
    write_recipe(folder / "long.toml", "pairs", train__steps=300, **CHECKPOINTS)
    result = cloob_here("train", "middle.toml", "--out", "straight", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def same_weights(first: Path, second: Path) -> bool:
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def start_and_stop(
    place: Path, out: str, number: signal.Signals, *options: str, command: Sequence[str] = COMMAND
) -> tuple[int, str]:
    """Start the longer run, send it a signal after its first checkpoint; its exit code and stderr."""
    process = subprocess.Popen(
        [*command, "train", "long.toml", "--out", out, *options],
        cwd=place, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    talk = ""
    while "saved" not in talk:
        line = process.stderr.readline()
        assert line, f"the run ended without a checkpoint: {talk}"
        talk += line
    process.send_signal(number)
    talk += process.communicate(timeout=120)[1]
    return process.returncode, talk


def test_the_default_folder_and_the_json_result(place):
    result = cloob_here("train", "short.toml", "--json", "--set", "train.steps=4", "--quiet", cwd=place)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["model_folder"] == str(Path("runs", "tiny", "model"))
    assert document["step"] == 4
    assert document["metrics"]["loss"] > 0
    assert (place / "runs" / "tiny" / "model" / "model.safetensors").is_file()
    again = cloob_here("train", "short.toml", cwd=place)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert "--resume" in again.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_130_and_resume_ends_alike(place, number):
    out = f"stopped-{number.name}"
    code, talk = start_and_stop(place, out, number)
    assert code == 130, talk
    assert "the run is saved" in talk
    assert "--resume" in talk
    assert "Traceback" not in talk
    assert not (place / out / "model").exists()
    if not (place / "long").exists():
        assert cloob("train", "long.toml", "--out", "long", cwd=place).returncode == 0
    result = cloob("train", "long.toml", "--out", out, "--resume", cwd=place)
    assert result.returncode == 0, result.stderr
    assert same_weights(place / "long", place / out)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_resumes_to_the_same_bits(place):
    arguments = ["train", "middle.toml", "--out", "killed"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=place, env=environment(), capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (place / "killed" / "checkpoints").iterdir()] == ["step-00000020"]
    result = cloob(*arguments, "--resume", cwd=place)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{Path('killed', 'model')}\n"
    assert "from step 20" in result.stderr
    assert same_weights(place / "straight", place / "killed")
    steps = [row["step"] for row in read_rows(place / "killed" / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_terminal_that_closes_asks_to_save_unless_nohup_says_otherwise():
    code = (
        "import os, signal\n"
        "from cloob_cli.training.interrupt import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    stop.nothing_to_save = None  # as after the first step\n"
        "    os.kill(os.getpid(), signal.SIGHUP); print(stop.requested)\n"
    )
    for prefix, requested in (([], "True\n"), (["nohup"], "False\n")):
        command = [*prefix, sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stdout) == (0, requested), result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_second_signal_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from cloob_cli.training.interrupt import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    stop.nothing_to_save = None  # a step has been made\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01); assert stop.requested; print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01); print('still here')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (130, "first\n"), result.stderr


def test_a_run_that_is_not_read_to_its_end_does_not_hold_the_process():
    """Python 3.13 freezes daemon threads when it ends; a generator that is freed then must not wait for one."""
    code = (
        "from cloob_cli.training.interrupt import stop_on_signals\n"
        "def events():\n"
        "    with stop_on_signals():\n"
        "        yield\n"
        "started = events(); next(started)\n"
        "cycle = [started]; cycle.append(cycle)\n"  # freed by the last garbage collection
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# Sends itself Ctrl-C as it opens the data.
INTERRUPTED = """
import os, signal
from cloob_cli.training import data_split
open_pairs = data_split.open_pairs
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return open_pairs(*arguments)
data_split.open_pairs = interrupted
from cloob_cli.main import run
run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_before_the_first_step_is_answered_and_leaves_with_130(place):
    command = [sys.executable, "-c", INTERRUPTED, "train", "short.toml", "--out", "early"]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=60)
    talk = done.stderr
    assert done.returncode == 130
    assert talk.startswith("opening the data ...\n")
    assert "stopping; once more" in talk
    assert "error: stopped before the first step" in talk
    assert "Traceback" not in talk


def test_with_a_launcher_s_variables_skipped_pairs_are_no_failure(place, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    (pairs / "00.png").write_bytes(b"")
    arguments = ["train", place / "short.toml", "--out", "run", "--set", "data.train=pairs"]
    result = cloob_here(*arguments, cwd=tmp_path, ACCELERATE_MIXED_PRECISION="no")
    assert result.returncode == 0, result.stderr
    assert "1 pair could not be read" in result.stderr


@pytest.mark.slow
def test_under_a_launcher_skipped_pairs_are_no_failure(place, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    (pairs / "00.png").write_bytes(b"")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    result = subprocess.run(
        [sys.executable, *launch, "--mixed_precision=no", "--dynamo_backend=no", "-m", "cloob_cli", "train",
         str(place / "short.toml"), "--out", "run", "--set", "data.train=pairs"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1 pair could not be read" in result.stderr


def test_a_loss_that_is_not_finite_is_one_line_with_a_hint(place):
    changes = ["--set", "optimizer.learning_rate=1e38", "--set", "optimizer.warmup_steps=0"]
    result = cloob_here("train", "short.toml", "--out", "diverged", *changes, cwd=place)
    assert result.returncode == 1
    assert "no longer finite at step" in result.stderr
    assert "hint: try a lower optimizer.learning_rate" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_skipped_pairs_leave_with_3(place, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    (pairs / "00.png").write_bytes(b"")
    result = cloob_here("train", place / "short.toml", "--out", "run", "--set", "data.train=pairs", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert "00.png" in (tmp_path / "run" / "skipped.jsonl").read_text()
    assert "skipped.jsonl" in result.stderr
    assert result.stdout == f"{Path('run', 'model')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.toml"], "no recipe at nowhere.toml"),
        (["short.toml", "--set", "train.stepz=3"], "did you mean 'train.steps'?"),
        (["short.toml", "--set", "optimizer.learning_rate=fast"], "optimizer.learning_rate"),
        (["short.toml", "--set", "train.steps"], "not of the form section.key=value"),
        (["short.toml", "--set", "data.train=nowhere", "--out", "unused"], "no data at"),
        (["short.toml", "--device", "abacus", "--out", "unused"], "unknown device 'abacus'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(place, arguments, said):
    result = cloob_here("train", *arguments, "--quiet", cwd=place)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert result.stdout == ""
    assert not (place / "unused").exists()


def test_a_dry_run_shows_the_whole_recipe_and_writes_nothing(place):
    result = cloob_here("train", "short.toml", "--dry-run", "--out", "dry", "--set", "train.batch_size=8", cwd=place)
    assert result.returncode == 0, result.stderr
    shown = dict(line.split("\t") for line in result.stdout.splitlines())
    assert shown["train.batch_size"] == "8"
    assert shown["optimizer.beta2"] == "0.98"
    assert shown["training pairs"] == "64"
    assert shown["steps an epoch"] == "8"
    stored = json.loads((place / "straight" / "model" / "config.json").read_text())
    assert int(shown["parameters"]) > stored["text"]["vocab_size"] * 16
    assert not (place / "dry").exists()


def test_a_runs_own_recipe_can_be_used_again(place):
    result = cloob_here("train", place / "straight" / "recipe.json", "--dry-run", "--json", cwd=place)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["recipe"]["train"]["steps"] == 60


@pytest.mark.numeric
@pytest.mark.parametrize(
    "start", [FORKED, pytest.param(TWO_PROCESSES, marks=pytest.mark.slow)], ids=["forked", "launched"]
)
def test_two_processes_train_like_one(place, tmp_path, start):
    """The same batches are shared out: losses agree to rounding, step by step."""
    changes = ["--set", "train.log_every=1", "--set", "train.steps=12", "--set", "objective.mask_equal_captions=true"]
    changes += ["--set", "objective.learn_inv_tau=true", "--set", "train.micro_batch_size=3"]
    changes += ["--set", "data.validation_fraction=0.1", "--set", "validation.every=6"]
    arguments = [
        "train",
        str(place / "short.toml"),
        "--set",
        f"data.train={place / 'pairs'}",
        "--device",
        "cpu",
        *changes,
    ]
    one = cloob_here(*arguments, "--out", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = subprocess.run(
        [*start, *arguments, "--out", "two"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout == f"{Path('two', 'model')}\n"
    assert "on 2 processes" in two.stderr
    rows = [read_rows(tmp_path / out / "metrics.jsonl") for out in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for name in ("loss", "gradient_norm", "inv_tau"):
        values = [[row[name] for row in run if name in row] for run in rows]
        close(values[0], values[1], "rounding, enlarged by twelve steps of Adam", rtol=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_two_processes_agree_where_to_stop(place):
    """The launcher passes SIGTERM on to both, at different moments; they save after the same step."""
    options = ("--device", "cpu", "--set", "train.steps=5000")
    _, talk = start_and_stop(place, "both", signal.SIGTERM, *options, command=TWO_PROCESSES)
    stopped = [line for line in talk.splitlines() if "the run is saved" in line]
    assert len(stopped) == 2, talk
    assert stopped[0] == stopped[1]
    newest = sorted((place / "both" / "checkpoints").iterdir())[-1]
    assert f"stopped at step {int(newest.name.removeprefix('step-'))} of 5000" in stopped[0]


def test_resume_of_a_finished_run_says_so_and_leaves_with_0(place, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    (pairs / "00.txt").unlink()
    first = cloob_here(
        "train", place / "short.toml", "--out", "run", "--set", "data.train=pairs", "--json", cwd=tmp_path
    )
    assert first.returncode == 3, first.stderr
    again = ["train", place / "short.toml", "--out", "run", "--set", "data.train=pairs", "--resume"]
    result = cloob_here(*again, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"{Path('run', 'model')}\n"), result.stderr
    assert "was finished after step 30" in result.stderr
    documents = [json.loads(text) for text in (first.stdout, cloob_here(*again, "--json", cwd=tmp_path).stdout)]
    assert documents[0] | {"already": True} == documents[1]


# Runs cloob in a folder of its own for each process, as on nodes that share no file system.
ON_NODES = """
import os, sys
folder = f"node{os.environ['RANK']}"
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
from cloob_cli.main import run
run()
"""


def on_two_nodes(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    (cwd / "node.py").write_text(ON_NODES)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "node.py", "train"]
    return subprocess.run(
        [sys.executable, *launch, *map(str, arguments), "--device", "cpu"],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_nodes_without_a_common_folder_resume_from_the_first_ones_checkpoint(place, tmp_path):
    """One process's checkpoint is everybody's: the run ends with the bits of one that was not stopped."""
    recipe, changes = place / "short.toml", ["--set", "train.ema=0.9", "--set", "objective.learn_inv_tau=true"]
    result = on_two_nodes(tmp_path, recipe, "--out", "cut", *changes)
    assert result.returncode == 0, result.stderr
    cut = tmp_path / "node0" / "cut"
    shutil.copytree(cut, tmp_path / "whole")
    (cut / "result.json").unlink()
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "checkpoints" / "step-00000030")
    result = on_two_nodes(tmp_path, recipe, "--out", "cut", *changes, "--resume")
    assert result.returncode == 0, result.stderr
    assert "from step 20" in result.stderr
    assert same_weights(tmp_path / "whole", cut)
    assert not (tmp_path / "node1" / "cut").exists()  # the first one's folder is the run's


@pytest.mark.slow
def test_processes_with_another_recipe_do_not_start(place, tmp_path):
    for node, rate in (("node0", "0.003"), ("node1", "0.002")):
        (tmp_path / node).mkdir()
        text = (place / "short.toml").read_text().replace("0.003", rate)
        (tmp_path / node / "recipe.toml").write_text(text)
    result = on_two_nodes(tmp_path, "recipe.toml", "--set", f"data.train={place / 'pairs'}")
    assert result.returncode != 0
    said = "error: the processes differ in the recipe's optimizer.learning_rate: 0.003 in process 0, 0.002 in process 1"
    assert said in result.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_of_many_skipped_pairs_the_first_are_told(tmp_path):
    """The rest are in skipped.jsonl: a terminal full of them hides everything else."""
    pairs = write_pairs(tmp_path / "pairs")
    for number in range(30):
        (pairs / f"{number:02}.txt").write_text("")
    write_recipe(tmp_path / "r.toml", "pairs", train__steps=8)
    result = cloob_here("train", "r.toml", "--out", "run", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr.count("no caption") == 20
    assert "more pairs are skipped" in result.stderr
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) > 20


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--set", "train.micro_batch_size=17"], "micro_batch_size 17 is above batch_size 16"),
        (["--set", "train.batch_size=65"], "64 training pairs are fewer than one batch of 65"),
        (["--set", "validation.zero_shot=['nowhere']"], "no data set at"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--out", "short.toml/run"], "is not a folder"),
        (["--set", "data.train=s3://bucket/pairs"], "s3://bucket/pairs is an address"),
        (["--set", "validation.zero_shot=['https://host/set']"], "https://host/set is an address"),
    ],
)
def test_a_dry_run_finds_what_keeps_a_run_from_starting(place, changes, said, dry):
    arguments = ["--out", "unused", *changes, *(["--dry-run"] if dry else [])]
    result = cloob_here("train", "short.toml", "--quiet", *arguments, cwd=place)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert said in result.stderr
    assert not (place / "unused" / "recipe.json").exists()


def test_set_without_a_value_takes_a_key_out(place):
    write_recipe(place / "with.toml", "pairs", data__validation="nowhere")
    result = cloob_here("train", "with.toml", "--dry-run", "--json", "--set", "data.validation=", cwd=place)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["recipe"]["data"]["validation"] is None
    assert json.loads(result.stdout)["held-out pairs"] == 0
    empty = cloob_here("train", "with.toml", "--dry-run", "--set", "data.validation=''", cwd=place)
    assert empty.returncode == 2
    assert "'data.validation': the path is empty" in empty.stderr
