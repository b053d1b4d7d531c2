"""`cloob classify --sort-into`, `--xmp` and `cloob undo` as processes; paths from stdin, --label and --exclude."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import cloob_here, environment
from tiny_model import save_images, save_tiny_model

from cloob_cli.filing.xmp import read_keywords


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model", context_length=40)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_images(tmp_path / "images", 4)
    save_images(tmp_path / "images" / "deeper", 3, suffix=".jpg")
    (tmp_path / "labels.txt").write_text("cat\ndog: puppy | hound\nsea/shore\n")
    return tmp_path


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def undo_file(folder: Path) -> Path:
    [found] = folder.glob("cloob-undo-*.jsonl")
    return found


@pytest.mark.parametrize("output", [None, "out.csv", "out.jsonl", "out.parquet"])
def test_sorted_rows_say_where_and_undo_restores(place: Path, model: Path, output: str | None) -> None:
    before = digest(place)
    command = ["classify", "images", "-l", "labels.txt", "-m", model, "--sort-into", "by label", "--sort-mode", "move"]
    result = cloob_here(*command, "--xmp", "--json", *(["-o", output] if output else []), cwd=place)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 7
    for row in rows:
        [target] = row["sorted_to"]
        assert not (place / row["path"]).exists()
        assert Path(target).parent.as_posix() == f"by label/{row['label'].replace('/', '_')}"
        sidecar = (place / target).with_suffix(".xmp")
        if sidecar.exists():  # of two images of one name the second has a longer one
            assert read_keywords(sidecar.read_bytes())[0] == [row["label"]]
    assert len(list(place.rglob("*.xmp"))) == 7
    if output == "out.parquet":
        assert pq.read_table(place / output).to_pylist() == rows
    elif output == "out.csv":
        lines = (place / output).read_text().splitlines()
        assert lines[0] == "path,label,probability,cosine,sorted_to"
        assert lines[1].endswith(f",{rows[0]['sorted_to'][0]}")
    if output:
        (place / output).unlink()
    written = undo_file(place / "by label")
    assert f"7 images sorted, 7 sidecars written; to take it back: cloob undo {written.relative_to(place)}" in (
        result.stderr.replace(f"{place}/", "")
    )
    undone = cloob_here("undo", written, "--json", cwd=place)
    assert (undone.returncode, json.loads(undone.stdout)) == (0, {"undone": 14, "kept": []})
    assert digest(place) == before
    assert sorted(path.name for path in place.iterdir()) == ["images", "labels.txt"]


def test_a_result_file_with_further_columns_is_its_own(place: Path, model: Path) -> None:
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        for _ in range(2):
            command = ["classify", "images", "-l", "labels.txt", "-m", model, "--sort-into", "out", "-o", name]
            result = cloob_here(*command, cwd=place)
            assert result.returncode == 0, result.stderr


def test_sidecars_alone_have_an_undo_file_too(place: Path, model: Path) -> None:
    before = digest(place)
    result = cloob_here("classify", "images", "--label", "cat", "-m", model, "--xmp", "-q", cwd=place)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "path\tlabel\tprobability\tcosine"
    assert read_keywords((place / "images/0001.xmp").read_bytes()) == (["cat"], ["cat"])
    after = digest(place)
    assert {name: after[name] for name in before} == before
    assert cloob_here("undo", undo_file(place / "images"), cwd=place).stdout == "7 undone, 0 kept\n"
    assert digest(place) == before


def test_several_runs_are_taken_back_one_by_one_from_the_last(place: Path, model: Path) -> None:
    before = digest(place)
    for label in ("cat", "dog"):
        options = ["--label", label, "-m", model, "--xmp", "-q", "--undo-file", f"{label}.jsonl"]
        assert cloob_here("classify", "images", *options, cwd=place).returncode == 0
    both = cloob_here("undo", "dog.jsonl", "cat.jsonl", cwd=place)
    assert (both.returncode, both.stdout) == (2, "")
    assert "cat.jsonl" in both.stderr
    runs = ["cat.jsonl", "dog.jsonl", "cat.jsonl"]
    said = [cloob_here("undo", name, cwd=place).stdout for name in runs]
    assert said == ["0 undone, 7 kept\n", "7 undone, 0 kept\n", "7 undone, 0 kept\n"]
    assert digest(place) == before


def test_an_undo_file_that_is_there_is_refused(place: Path, model: Path) -> None:
    """Under another name than was asked for, a script that takes the run back would take back an earlier one."""
    command = ["classify", "images", "--label", "cat", "-m", model, "--xmp", "-q", "--undo-file", "undo.jsonl"]
    assert cloob_here(*command, cwd=place).returncode == 0
    before = digest(place)
    result = cloob_here(*command, cwd=place)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == ["error: undo.jsonl exists already", "hint: choose another --undo-file"]
    assert digest(place) == before


def test_a_target_where_nothing_can_be_written_is_refused_at_once(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "closed").mkdir()
    access = os.access

    def refusing(path: Path, mode: int) -> bool:
        return not (Path(path).name == "closed" and mode & os.W_OK) and access(path, mode)

    monkeypatch.setattr(os, "access", refusing)
    command = ["classify", "images", "--label", "cat", "-m", model]
    (place / "file").touch()
    result = cloob_here(*command, "--sort-into", "file/deeper", cwd=place)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.search(r"cannot write file[/\\]deeper: \S+[/\\]file is not a folder", result.stderr)
    for option in (
        ["--sort-into", "closed"],
        ["--sort-into", "closed/deeper"],
        ["--xmp", "--undo-file", "closed/undo"],
    ):
        result = cloob_here(*command, *option, cwd=place)
        assert (result.returncode, result.stdout) == (2, "")
        assert f"cannot write {Path(option[-1])}: no permission to write" in result.stderr
        assert result.stderr.splitlines()[-1] == f"hint: choose another {option[-2]}"


def test_an_image_that_cannot_be_filed_is_named_and_the_exit_code_is_3(place: Path, model: Path) -> None:
    (place / "images/0002.xmp").write_bytes(b"<!DOCTYPE a><a/>")
    command = ["classify", "images", "--label", "cat", "-m", model, "--xmp", "-q", "-o", "out.csv"]
    result = cloob_here(*command, cwd=place)
    assert result.returncode == 3
    [failure] = [json.loads(line) for line in (place / "out.failures.jsonl").read_text().splitlines()]
    assert failure["path"] == "images/0002.png"
    assert "its sidecar 0002.xmp is left alone" in failure["reason"]
    assert failure["reason"] in result.stderr
    assert len((place / "out.csv").read_text().splitlines()) == 8  # its label is good


def test_what_was_changed_since_is_kept_with_exit_code_1(place: Path, model: Path) -> None:
    cloob_here("classify", "images", "--label", "cat", "-m", model, "--sort-into", "out", "-q", cwd=place)
    (place / "out/cat/0001.png").write_bytes(b"edited")
    result = cloob_here("undo", undo_file(place / "out"), cwd=place)
    assert (result.returncode, result.stdout) == (1, "6 undone, 1 kept\n")
    assert "out/cat/0001.png is kept: it changed since" in result.stderr
    assert undo_file(place / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "--label", "cat", "--sort-into", "images/sorted"], "images/sorted lies in images"),
        (["images", "--label", "cat", "--sort-into", "images"], "images lies in images"),
        (["images", "--label", "cat", "--sort-into", "labels.txt"], "labels.txt is not a folder"),
        (["images", "--label", "cat", "--undo-file", "u.jsonl"], "--undo-file is for"),
        (["images"], "no labels"),
        (["images", "--label", " "], "a --label is empty"),
        (["images", "--label", "caf\udce9"], "is not UTF-8"),
        (
            ["images", "-l", "labels.txt", "--label", "cat"],
            "--label 'cat': the label 'cat' stands already in labels.txt",
        ),
        (["images", "--label", "cat", "--null"], "--null is about paths from standard input"),
        (["images", "--label", "cat", "--exclude", "*"], "no images in images"),
        (["images/0001.png", "--label", "cat", "--exclude", "*.png"], "no image is left"),
    ],
)
def test_wrong_input(place: Path, arguments: list[str], message: str) -> None:
    result = cloob_here("classify", *arguments, cwd=place)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert sorted(path.name for path in place.iterdir()) == ["images", "labels.txt"]


def test_undo_of_something_else(place: Path) -> None:
    for file, message in (("labels.txt", "is not an undo file"), ("missing", "cannot be read")):
        result = cloob_here("undo", file, cwd=place)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr


def test_excluded_names_and_paths_are_left_out(place: Path, model: Path) -> None:
    def paths(*exclude: str) -> list[str]:
        options = [word for pattern in exclude for word in ("--exclude", pattern)]
        result = cloob_here("classify", "images", "--label", "cat", "-m", model, "-q", *options, cwd=place)
        assert result.returncode == 0, result.stderr
        return [line.split("\t")[0].removeprefix("images/") for line in result.stdout.splitlines()[1:]]

    assert paths("deeper") == ["0000.png", "0001.png", "0002.png", "0003.png"]
    assert paths("*.png", "deeper/0001*") == ["deeper/0000.jpg", "deeper/0002.jpg"]
    assert paths("images", "*.PNG", "*/*") == ["0000.png", "0001.png", "0002.png", "0003.png"]


def test_paths_from_standard_input(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.rename(place / "images/0003.png", place / "images/line\nbreak.png")
    listed = b"images/line\nbreak.png\0images/deeper\0missing.png\0"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    result = cloob_here("classify", "-", "--label", "cat", "-m", model, "--json", "-q", "--null", cwd=place)
    assert result.returncode == 3
    assert [json.loads(line)["path"] for line in result.stdout.splitlines()] == [
        "images/line\nbreak.png", "images/deeper/0000.jpg", "images/deeper/0001.jpg", "images/deeper/0002.jpg",
    ]  # fmt: skip
    assert "missing.png" in result.stderr


@pytest.mark.parametrize("command", ["classify", "embed"])
def test_lines_of_standard_input(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def run(listed: bytes, *options: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
        asked = ["--label", "cat"] if command == "classify" else ["-o", "emb.npy"]
        return cloob_here(command, "-", *asked, "-m", model, "-q", *options, cwd=place)

    lines = run(b"images/0001.png\r\n\nimages/0000.png\n", "--exclude", "0000*", "--force")
    assert (lines.returncode, lines.stderr) == (0, "")
    if command == "embed":
        assert pq.read_table(place / "emb.parquet").column("path").to_pylist() == ["images/0001.png"]
    else:
        assert [line.split("\t")[0] for line in lines.stdout.splitlines()] == ["path", "images/0001.png"]
    empty = run(b"\n")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "standard input lists no path" in empty.stderr


# Kills the process with the 30th image, in the middle of a batch of four.
KILLED = """
import os
from cloob_cli.filing import placing
carry_out, left = placing.carry_out, 30
def killed(action):
    global left
    carry_out(action)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
placing.carry_out = killed
from cloob_cli.main import run
run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("mode", [pytest.param("copy", marks=pytest.mark.slow), "move"])
def test_a_killed_run_can_be_undone(place: Path, model: Path, mode: str) -> None:
    save_images(place / "images", 60)
    before = digest(place)
    options = ["--sort-into", "out", "--sort-mode", mode, "--xmp", "--batch-size", "4"]
    command = [sys.executable, "-c", KILLED, "classify", "images", "-l", "labels.txt", "-m", str(model), *options]
    killed = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert digest(place) != before
    undone = cloob_here("undo", undo_file(place / "out"), cwd=place)
    assert undone.returncode == 0, undone.stderr
    assert digest(place) == before
    assert not (place / "out").exists()
