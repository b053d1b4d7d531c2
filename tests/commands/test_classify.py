"""`cloob classify` as a process: results, formats, exit codes, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import COMMAND, cloob, cloob_here, environment
from margins import within
from PIL import Image
from tiny_model import RESNET, save_hostile_images, save_images, save_tiny_model

import cloob_cli
from cloob_cli import assets
from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES
from cloob_cli.registry import entries

LABELS = "cat\ndog: puppy | hound\n# not this\nsea\nroof\n"
OLD_ROWS = "path,label,probability,cosine\nof an earlier run.png,cat,1.0,0.5\n"
CLASSES = {"cat": ["cat"], "dog": ["dog", "puppy", "hound"], "sea": ["sea"], "roof": ["roof"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, labels and seven images."""
    folder = tmp_path_factory.mktemp("classify")
    save_tiny_model(folder / "model", context_length=40)
    save_images(folder / "images" / "deeper", 4, suffix=".jpg")
    save_images(folder / "images", 3)
    (folder / "labels.txt").write_text(LABELS, encoding="utf-8")
    return folder


def expected(place: Path, model: str, templates: tuple[str, ...], paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and cosines [images, classes], one image and one prompt at a time through the public API."""
    m = cloob_cli.load(str(place / model), device="cpu")
    classes = []
    for names in CLASSES.values():
        prompts = [template.replace("{c}", name) for name in names for template in templates]
        mean = torch.cat([m.encode_text(m.tokenize([prompt])) for prompt in prompts]).mean(0).numpy()
        classes.append(mean / np.linalg.norm(mean))
    images = [m.encode_image(m.preprocess(Image.open(place / path).convert("RGB"))[None])[0].numpy() for path in paths]
    cosines = np.stack(images) @ np.stack(classes).T
    weights = np.exp(m.config.inv_tau * cosines)
    return weights / weights.sum(axis=1, keepdims=True), cosines


def check_objects(objects: list[dict], place: Path, model: str, templates: tuple[str, ...], top_k: int) -> None:
    """The objects are the issue's shape, and their numbers those of the plain loop."""
    probabilities, cosines = expected(place, model, templates, [one["path"] for one in objects])
    names = list(CLASSES)
    for one, shares, cosine in zip(objects, probabilities, cosines, strict=True):
        assert list(one) == ["path", "label", "probability", "cosine", "top"]
        assert {name: one[name] for name in ("label", "probability", "cosine")} == one["top"][0]
        assert [choice["label"] for choice in one["top"]] == [names[i] for i in np.argsort(-cosine)[:top_k]]
        for choice in one["top"]:
            assert list(choice) == ["label", "probability", "cosine"]
            index = names.index(choice["label"])
            # Cosines through a dozen layers in float32: 40 EPS, and inv_tau = 30 times that in the exponent.
            within(abs(choice["probability"] - shares[index]), 1e-4, "30 * 40 EPS")
            within(abs(choice["cosine"] - cosine[index]), 5e-6, "40 EPS")


@pytest.mark.numeric
def test_json_lines_equal_a_plain_loop(place: Path) -> None:
    result = cloob(
        "classify", "images", "--labels", "labels.txt", "--model", "model", "--json", "--top-k", 3,
        "--device", "cpu", "--batch-size", 2, "--workers", 2, cwd=place,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    wanted = ["images/0000.png", "images/0001.png", "images/0002.png"]
    assert [one["path"] for one in objects] == wanted + [f"images/deeper/000{i}.jpg" for i in range(4)]
    check_objects(objects, place, "model", DEFAULT_TEMPLATES, 3)
    opening, closing = result.stderr.splitlines()
    assert opening == "model tiny on cpu (1 thread) in float32"
    assert re.fullmatch(r"classified 7 images in \d+\.\d s \([\d.,]+ a second\)", closing)


@pytest.mark.numeric
def test_templates_and_a_resnet(place: Path) -> None:
    templates = ("art of {c}", "{c}")
    save_tiny_model(place / "resnet", RESNET, name="", inv_tau=12.5, templates=list(templates))
    (place / "templates.txt").write_text("art of {}\n{c}\n", encoding="utf-8")
    arguments = [
        "classify",
        "images/0001.png",
        "images/deeper",
        "-l",
        "labels.txt",
        "--json",
        "-q",
        "--device",
        "cpu",
    ]
    own = cloob_here(*arguments, cwd=place, CLOOB_MODEL="resnet")
    given = cloob_here(*arguments, "-m", "resnet", "--templates", "templates.txt", cwd=place, CLOOB_MODEL="nonsense")
    assert (own.returncode, own.stderr) == (0, "")
    objects = [json.loads(line) for line in own.stdout.splitlines()]
    assert objects[0]["path"] == "images/0001.png"
    assert len(objects) == 5
    check_objects(objects, place, "resnet", templates, 1)
    assert given.stdout == own.stdout


def test_files_and_columns_agree(place: Path) -> None:
    hostile = save_hostile_images(place / "hostile")
    arguments = ["classify", "hostile", "images", "-l", "labels.txt", "-m", "model", "--top-k", 2]
    as_json = cloob_here(*arguments, "--json", "-o", "out.csv", cwd=place)
    objects = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert as_json.returncode == 3
    assert len(objects) == 8  # the hostile folder has one good image

    failures = [json.loads(line) for line in (place / "out.failures.jsonl").read_text().splitlines()]
    assert [one["path"] for one in failures] == sorted(f"hostile/{name}" for name in hostile)
    assert all(set(one) == {"path", "reason"} and one["reason"] for one in failures)
    for one in failures:
        assert one["path"].replace("\n", "\\n") in as_json.stderr

    with (place / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["path", "label", "probability", "cosine", "label_2", "probability_2", "cosine_2"]
    assert [[row[0], row[1], float(row[2]), float(row[3]), row[4]] for row in rows[1:]] == [
        [one["path"], one["label"], one["probability"], one["cosine"], one["top"][1]["label"]] for one in objects
    ]
    for name in ("out.jsonl", "out.parquet"):
        result = cloob_here(*arguments, "-q", "-o", name, cwd=place)
        assert (result.returncode, result.stdout) == (3, "")
    assert [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()] == objects
    table = pq.read_table(place / "out.parquet")
    assert table.to_pylist() == objects
    assert table.schema.metadata[b"made_by"] == b"cloob classify"

    plain = cloob_here(*arguments, cwd=place)
    assert plain.returncode == 3
    header, *lines = [line.split("\t") for line in plain.stdout.splitlines()]
    assert header == rows[0]
    assert [line[:2] for line in lines] == [[one["path"], one["label"]] for one in objects]


def test_labels_of_equal_tokens_are_named_and_cut_texts_counted(place: Path) -> None:
    fits = "1234567890" * 3 + "12345678"  # and its start and end
    (place / "alike.txt").write_text(f"{fits}1\n{fits}2\nsea\nSEA\nroof\n")
    (place / "bare.txt").write_text("{c}\n")
    options = ["-l", "alike.txt", "--templates", "bare.txt", "-m", "model", "-q", "--json"]
    result = cloob_here("classify", "images/0000.png", *options, cwd=place)
    alike = "the model cannot tell these labels apart, as they have the same tokens:"
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"warning: {alike} '{fits}1', '{fits}2'",
        f"warning: {alike} 'sea', 'SEA'",
        "warning: 2 of 5 label texts are longer than the model's 40 tokens and were cut",
    ]


def test_labels_are_not_overwritten_by_the_result(place: Path) -> None:
    (place / "labels.csv").write_text("cat\ndog\n")
    result = cloob_here("classify", "images", "-l", "labels.csv", "-m", "model", "-o", "labels.csv", cwd=place)
    assert (result.returncode, result.stdout) == (2, "")
    assert "labels.csv would overwrite labels.csv, which is an input" in result.stderr
    assert (place / "labels.csv").read_text() == "cat\ndog\n"


def test_a_table_of_somebody_else_is_overwritten_only_by_force(place: Path) -> None:
    (place / "mine.csv").write_text("precious")
    command = ["classify", "images", "-l", "labels.txt", "-m", "model", "-o", "mine.csv"]
    refused = cloob_here(*command, cwd=place)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "mine.csv exists, and `cloob classify` did not write it" in refused.stderr
    assert (place / "mine.csv").read_text() == "precious"
    assert cloob_here(*command, "--force", cwd=place).returncode == 0
    assert cloob_here(*command, cwd=place).returncode == 0  # now it is its own


def test_a_run_without_failures_removes_the_old_list(place: Path) -> None:
    command = ["classify", "images", "-l", "labels.txt", "-m", "model", "-o", "clean.csv"]
    assert cloob_here(*command, cwd=place).returncode == 0
    (place / "clean.failures.jsonl").write_text('{"path": "a.png", "reason": "the file is empty"}\n')
    result = cloob_here(*command, cwd=place)
    assert (result.returncode, result.stdout) == (0, "")
    assert (place / "clean.csv").exists()
    assert not (place / "clean.failures.jsonl").exists()


def test_wrong_input_is_one_line_and_exit_code_2(place: Path) -> None:
    (place / "empty").mkdir()
    (place / "notes").mkdir()
    (place / "notes" / "a.txt").write_text("no image")
    (place / "none").mkdir()
    (place / "none" / "a.png").write_bytes(b"no image either")
    (place / "duplicates.txt").write_text("cat\ncat\n")
    (place / "old.csv").write_text(OLD_ROWS)
    cases = [
        (["nowhere", "-l", "labels.txt"], "nowhere"),
        (["empty", "-l", "labels.txt"], "no images in empty"),
        (["notes", "-l", "labels.txt"], "no images in notes"),
        (["none", "-l", "labels.txt", "-m", "model", "-o", "old.csv"], "the only image cannot be read"),
        (["none", "-l", "labels.txt", "-m", "model"], "the only image cannot be read"),
        (["images", "-l", "duplicates.txt"], "stands already on line 1"),
        (["images", "-l", "labels.txt", "--templates", "labels.txt"], "no {c} in the template"),
        (["images", "-l", "labels.txt", "-o", "out.xls"], "unknown file type"),
        (["images", "-l", "labels.txt", "-m", "images"], "model.safetensors"),
    ]
    for arguments, message in cases:
        result = cloob_here("classify", *arguments, cwd=place)
        assert (result.returncode, result.stdout) == (2, ""), (arguments, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, result.stderr
        assert message in errors[0]
        assert "Traceback" not in result.stderr
    assert (place / "old.csv").read_text() == OLD_ROWS
    assert not list(place.glob(".*partial"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "name", ["SIGINT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGTERM", "SIGHUP"))]
)
def test_an_interrupted_run_leaves_nothing(place: Path, tmp_path: Path, name: str) -> None:
    [large] = save_images(tmp_path / "many", 1, size=(3000, 2000), suffix=".jpg")
    for copy in range(600):
        os.link(large, large.with_name(f"copy{copy}.jpg"))
    (tmp_path / "out.csv").write_text(OLD_ROWS)
    options = ["-l", place / "labels.txt", "-m", place / "model", "-o", "out.csv"]
    command = [*COMMAND, "classify", "many", *map(str, options)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out.csv.*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.Signals[name])
        _, talk = process.communicate(timeout=120)
    assert process.returncode == 130, talk
    assert "Traceback" not in talk
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["many", "out.csv"]
    assert (tmp_path / "out.csv").read_text() == OLD_ROWS


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_bar_on_the_terminal_takes_nothing_from_a_pipe(place: Path) -> None:
    import pty

    keeper, terminal = pty.openpty()
    command = [*COMMAND, "classify", "images", "-l", "labels.txt", "-m", "model", "--json", "--batch-size", "1"]
    env = environment(TERM="xterm", COLUMNS="80")
    with subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
        shown = b""
        try:
            while piece := os.read(keeper, 65536):
                shown += piece
        except OSError:  # Linux's way to say that the other end is closed
            pass
        os.close(keeper)
    assert process.returncode == 0, shown
    assert b"classify" in shown  # the bar
    assert [json.loads(line)["path"] for line in lines][:2] == ["images/0000.png", "images/0001.png"]
    assert len(lines) == 7


@pytest.mark.parametrize("device", [[], ["--device", "auto"], ["--device", "cpu"]])
def test_model_and_device_are_named_once_at_the_start(
    place: Path, device: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    result = cloob_here("classify", "images/0000.png", "-l", "labels.txt", "-m", "model", *device, cwd=place)
    assert result.returncode == 0
    opening, closing = result.stderr.splitlines()
    assert opening == "model tiny on cpu (3 threads) in float32"
    assert "tiny" not in closing
    assert "cpu" not in closing


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cloob_cli.core.device import device_text

    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"card {device.index}")
    assert device_text(torch.device("cuda:1")) == "cuda:1 (card 1)"
    assert device_text(torch.device("mps")) == "mps"


def test_the_bundled_model_says_once_what_it_is_good_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr(assets, "bundled_weights_folder", lambda: place / "weights")
    save_tiny_model(place / "weights" / assets.BUNDLED_MODEL, context_length=40, name=assets.BUNDLED_MODEL)
    arguments = ["classify", "images", "-l", "labels.txt", "--device", "cpu"]

    def said(*further: str, home: str = "home") -> list[str]:
        result = cloob_here(*arguments, *further, cwd=place, CLOOB_HOME=str(place / home))
        assert result.returncode == 0, result.stderr
        return result.stderr.splitlines()

    assert said("--quiet") == []  # which introduces nothing
    notice, purpose, hint, _ = said()
    assert notice == f"model {assets.BUNDLED_MODEL} on cpu (3 threads) in float32"
    assert entries.find_entry(assets.BUNDLED_MODEL).summary in purpose
    assert hint.startswith("hint: for photographs")
    again, closing = said()
    assert again == notice
    assert closing.startswith("classified 7 images in ")
    (place / "occupied").write_text("a home that cannot be written")
    assert [len(said(home="occupied")) for _ in range(2)] == [4, 4]
