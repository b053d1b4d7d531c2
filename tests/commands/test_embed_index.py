"""`cloob embed` into an output that is there: only what is new or changed is embedded, and no kill loses a batch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import COMMAND, cloob_here, environment
from interrupted import ctrl_c_after, kill_embed_after
from PIL import Image
from tiny_model import RESNET, save_images, save_tiny_model

from cloob_cli.commands import index_run
from cloob_cli.commands.inference_run import open_model
from cloob_cli.registry.locks import lock

SUFFIX = ".ppm"  # not compressed: all images of one size are files of one size
LONG_AGO = 1_600_000_000_000_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "model", RESNET)
    save_tiny_model(folder / "other")
    return folder


@pytest.fixture
def place(tmp_path: Path, models: Path) -> Iterator[Path]:
    """Forty images that were written long ago, and their embeddings in emb.npy."""
    for path in save_images(tmp_path / "images" / "a", 30, suffix=SUFFIX):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    for path in save_images(tmp_path / "images" / "b", 10, size=(40, 40), suffix=SUFFIX):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    (tmp_path / "model").symlink_to(models / "model")
    (tmp_path / "other").symlink_to(models / "other")
    assert embed(tmp_path) == 40
    return tmp_path


def arguments(*options: object, output: str = "emb.npy") -> list[object]:
    return ["embed", "images", "-o", output, "-m", "model", "--batch-size", 8, *options]


def embed(place: Path, *options: object, output: str = "emb.npy", code: int = 0) -> int:
    """Embed images/ and return the number of images that went through the model."""
    result = cloob_here(*arguments(*options, output=output), cwd=place)
    assert result.returncode == code, result.stderr
    found = re.search(r"^embedded (\d+) images? ", result.stderr, re.MULTILINE)
    return int(found[1]) if found else 0


def rows(place: Path, output: str = "emb.npy") -> tuple[list[str], np.ndarray]:
    return pq.read_table((place / output).with_suffix(".parquet")).column("path").to_pylist(), np.load(place / output)


def check_like_new(place: Path) -> None:
    """Compare emb.npy with what a run from nothing writes: names, order and every bit."""
    embed(place, output="fresh.npy")
    (names, found), (expected_names, expected) = rows(place), rows(place, "fresh.npy")
    assert names == expected_names
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    hidden = [path.name for path in place.iterdir() if path.name.startswith(".")]
    assert hidden == []


def paint(path: Path, number: int, size: tuple[int, int] = (48, 40), mtime: int | None = LONG_AGO) -> None:
    """Write image `number`, which no other test image is like."""
    noise = np.random.default_rng(1000 + number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(noise).save(path)
    if mtime:
        os.utime(path, ns=(mtime, mtime))


def test_an_unchanged_folder_costs_nothing_and_changes_nothing(place: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert embed(place) == 0
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before


def test_what_changed_moved_came_and_went(place: Path) -> None:
    a, b = place / "images" / "a", place / "images" / "b"
    paint(a / "0003.ppm", 1)  # the same size and time, but another time than the index has
    os.utime(a / "0003.ppm", ns=(LONG_AGO + 1, LONG_AGO + 1))
    paint(a / "0004.ppm", 2, size=(60, 30))  # another size, the same time
    (a / "0000.ppm").rename(b / "z.ppm")
    (place / "images" / "c").mkdir()
    (a / "0001.ppm").rename(place / "images" / "c" / "0001.ppm")
    shutil.copy(a / "0002.ppm", b / "a copy.ppm")
    (a / "0010.ppm").unlink()
    paint(a / "0000.ppm", 3, mtime=None)
    paint(place / "images" / "new.ppm", 4)
    os.utime(a / "0020.ppm")  # touched only
    assert embed(place) == 4
    check_like_new(place)
    assert embed(place) == 0


def test_an_image_that_changed_within_the_clock_s_grain_is_noticed(place: Path) -> None:
    """It has the size and the time that the index saw; but the index saw it too soon after that time to be sure."""
    path = place / "images" / "a" / "0007.ppm"
    paint(path, 5, mtime=None)
    assert embed(place) == 1
    seen = path.stat().st_mtime_ns
    paint(path, 6, mtime=seen)
    assert embed(place) == 1
    check_like_new(place)


def test_what_cannot_be_read_is_tried_again(place: Path) -> None:
    path = place / "images" / "a" / "0005.ppm"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert embed(place, code=3) == 0
    assert len(rows(place)[0]) == 39
    assert (place / "emb.failures.jsonl").exists()
    said = cloob_here(*arguments(output="emb.npy"), cwd=place).stderr
    assert re.search(r"^embedded 0 images in [\d.]+ s$", said, re.MULTILINE)  # without a rate
    path.write_bytes(good)
    assert embed(place) == 1
    assert not (place / "emb.failures.jsonl").exists()
    check_like_new(place)


def test_no_model_is_opened_for_what_still_cannot_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, opened = place / "images" / "a", list[object]()
    monkeypatch.setattr(index_run, "open_model", lambda *options: opened.append(options) or open_model(*options))
    good = (a / "0005.ppm").read_bytes()
    for name in ("0005.ppm", "0006.ppm"):
        (a / name).write_bytes(good[:100])
    embed(place, code=3)
    first = (place / "emb.failures.jsonl").read_text()
    assert len(opened) == 1
    opened.clear()
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    again = cloob_here(*arguments(), cwd=place)
    assert again.returncode == 3
    assert again.stderr.replace(os.sep, "/").count("skipped images/a/000") == 2
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before
    (a / "0006.ppm").unlink()  # fewer of them
    (a / "0007.ppm").unlink()  # and fewer rows
    assert embed(place, code=3) == 0
    assert opened == []
    assert (place / "emb.failures.jsonl").read_text() == first.splitlines(keepends=True)[0]
    check_readable(place)
    opened.clear()
    (a / "0008.ppm").write_bytes(good[:100])  # one more
    embed(place, code=3)
    assert len(opened) == 1
    opened.clear()
    (a / "0005.ppm").write_bytes(good)  # one of them is whole again
    assert embed(place, code=3) == 1
    assert len(opened) == 1
    check_readable(place)


def check_readable(place: Path) -> None:
    """Do as `check_like_new` does, where some images cannot be read."""
    embed(place, "--rebuild", output="fresh.npy", code=3)
    (names, found), (expected_names, expected) = rows(place), rows(place, "fresh.npy")
    assert names == expected_names
    np.testing.assert_array_equal(found, expected)


def test_batches_of_another_shape_do_not_change_a_bit(place: Path) -> None:
    """New images share their batches with others than in a run from nothing."""
    for number in range(0, 30, 3):
        paint(place / "images" / "a" / f"{number:04}.ppm", number)
    assert embed(place, "--workers", 0) == 0  # the same size and time: as an index that goes by them must have it
    for number in range(0, 30, 3):
        os.utime(place / "images" / "a" / f"{number:04}.ppm")
    assert embed(place) == 10
    check_like_new(place)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_after_a_kill_finished_batches_are_not_done_again(place: Path) -> None:
    for number in range(30):
        paint(place / "images" / "a" / f"{number:04}.ppm", number, mtime=LONG_AGO + 1)
    before = rows(place)
    kill_embed_after(2, arguments(), place, cut=100)  # which leaves one
    assert rows(place)[0] == before[0]
    np.testing.assert_array_equal(rows(place)[1], before[1])
    assert embed(place) == 22
    check_like_new(place)


def interrupt_after(place: Path, batches: int, monkeypatch: pytest.MonkeyPatch, *options: object) -> str:
    """Embed images/ until Ctrl-C comes behind so many batches; returns stderr."""
    with ctrl_c_after(batches, monkeypatch):
        result = cloob_here(*arguments(*options), cwd=place)
    assert result.returncode == 130
    return result.stderr


def test_after_ctrl_c_the_same_command_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        paint(place / "images" / "a" / f"{number:04}.ppm", number, mtime=LONG_AGO + 1)
    before = rows(place)
    for batches in (1, 1, 2):  # 8, 8 and 14 images, in the end all
        said = interrupt_after(place, batches, monkeypatch)
        assert "hint: the same command goes on from here\n" in said
        assert rows(place)[0] == before[0]
        np.testing.assert_array_equal(rows(place)[1], before[1])
    assert embed(place) == 0
    check_like_new(place)


def test_a_first_run_whose_batches_are_all_done_has_only_to_write_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in place.glob("emb.*"):
        path.unlink()
    interrupt_after(place, 5, monkeypatch)
    assert not (place / "emb.npy").exists()
    assert embed(place) == 0
    check_like_new(place)
    assert pq.read_schema(place / "emb.parquet").metadata == pq.read_schema(place / "fresh.parquet").metadata


def test_what_a_run_of_another_model_left_is_of_no_use(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in place.glob("emb.*"):
        path.unlink()
    interrupt_after(place, 2, monkeypatch, "-m", "other")
    interrupt_after(place, 2, monkeypatch, "--precision", "bf16")
    interrupt_after(place, 2, monkeypatch, "--exact")
    assert embed(place) == 40
    check_like_new(place)


@pytest.mark.parametrize(
    ("options", "other"),
    [
        (["--precision", "bf16"], "precision bfloat16, not with precision float32"),
        (["--batch-size", 4], "passes of 4 images, not with passes of 8 images"),
    ],
)
def test_the_model_is_opened_once_where_a_killed_run_computed_in_another_way(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], other: str
) -> None:
    for path in place.glob("emb.*"):
        path.unlink()
    interrupt_after(place, 2, monkeypatch, *options)
    done = cloob_here(*arguments(), cwd=place)
    assert (done.returncode, done.stderr.count("model tiny on cpu")) == (0, 1), done.stderr
    assert f"what an unfinished run has embedded is not used: it was made with {other}\n" in done.stderr
    assert "embedded 40 images" in done.stderr
    check_like_new(place)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["-m", "other"], "was made with the model tiny", "start anew with --rebuild"),
        (["--dtype", "float16"], "was made with dtype float32, not with dtype float16", "--dtype"),
        (["--exact"], "scaled decoding, not with exact decoding", "--exact"),
        (["--precision", "bf16"], "precision float32, not with precision bfloat16", "--precision"),
        (["--batch-size", "4"], "passes of 8 images, not with passes of 4", "--batch-size"),
    ],
)
def test_rows_that_were_made_in_other_ways_are_not_mixed(
    place: Path, options: list[str], message: str, hint: str
) -> None:
    paint(place / "images" / "new.ppm", 4)
    before = {path.name: path.read_bytes() for path in place.glob("emb.*")}
    command = ["embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", 8, *options]
    refused = cloob_here(*command, cwd=place)
    assert (refused.returncode, refused.stdout) == (2, "")
    error, hinted = refused.stderr.splitlines()[-2:]
    assert error.startswith("error: emb.npy was made with")
    assert message in error
    assert "--rebuild" in hinted
    assert hint in hinted
    assert {path.name: path.read_bytes() for path in place.glob("emb.*")} == before
    assert cloob_here(*command, "--rebuild", cwd=place).returncode == 0
    assert len(rows(place)[0]) == 41


def test_an_index_of_another_version_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloob_cli.version.__version__", "0.0.9")
    refused = cloob_here("embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", 8, cwd=place)
    assert refused.returncode == 2
    assert "made with cloob 0.1.0, not with cloob 0.0.9" in refused.stderr


def from_before_decoding_had_a_name(index: Path, fast_jpeg: str) -> None:
    table = pq.read_table(index)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"decoding"}
    pq.write_table(table.replace_schema_metadata({**metadata, b"fast_jpeg": fast_jpeg.encode()}), index)


@pytest.mark.parametrize(("fast_jpeg", "decoding"), [("false", "exact"), ("true", "reduced JPEG")])
def test_an_index_from_before_scaled_decoding_is_not_mixed_with_it(place: Path, fast_jpeg: str, decoding: str) -> None:
    from_before_decoding_had_a_name(place / "emb.parquet", fast_jpeg)
    paint(place / "images" / "new.ppm", 4)
    command = ["embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", 8]
    refused = cloob_here(*command, cwd=place)
    assert refused.returncode == 2
    assert f"emb.npy was made with {decoding} decoding, not with scaled decoding" in refused.stderr
    exact = cloob_here(*command, "--exact", cwd=place)
    assert exact.returncode == (0 if fast_jpeg == "false" else 2)
    assert len(rows(place)[0]) == (41 if fast_jpeg == "false" else 40)
    assert embed(place, "--rebuild") == 41
    assert embed(place) == 0


def test_fast_jpeg_is_accepted_and_is_the_default(place: Path) -> None:
    assert embed(place, "--fast-jpeg") == 0


def test_an_index_that_does_not_tell_its_files_is_made_anew(place: Path) -> None:
    table = pq.read_table(place / "emb.parquet")
    pq.write_table(table.select(["path"]), place / "emb.parquet")
    assert embed(place) == 40
    check_like_new(place)


def test_a_second_run_waits_for_the_first(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOOB_HOME", str(tmp_path / "home"))
    paint(place / "images" / "new.ppm", 4)
    command = ["embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", 8]
    begun = threading.Event()

    def first() -> None:
        with lock(f"index {place / 'emb.npy'}"):
            begun.set()
            time.sleep(0.5)

    other = threading.Thread(target=first)
    other.start()
    begun.wait()
    result = cloob_here(*command, cwd=place, CLOOB_HOME=str(tmp_path / "home"))
    other.join()
    assert result.returncode == 0
    assert result.stderr.startswith("waiting for another run that writes emb.npy\n")


@pytest.mark.slow
def test_two_runs_on_one_output_do_the_work_once(place: Path) -> None:
    for path in place.glob("emb.*"):
        path.unlink()
    command = [*COMMAND, "embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", "8"]
    options = {"cwd": place, "env": environment(CLOOB_HOME=str(place / "home")), "text": True}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) for _ in range(2)]  # type: ignore[call-overload]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sorted("embedded 40 images" in text for text in said) == [False, True], said
    check_like_new(place)


def test_nothing_to_do_needs_no_torch(place: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cloob_cli", "embed", "images", "-o", "emb.npy", "-m", "model"]
    done = subprocess.run(
        [*command, "--batch-size", "8"], cwd=place, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "emb.npy is up to date: 40 images" in done.stderr
    loaded = set(re.findall(r"\|\s+([\w.]+)\s*$", done.stderr, re.MULTILINE))
    assert "pyarrow" in loaded
    assert not {"torch", "PIL.Image", "pyarrow.dataset", "lancedb"} & loaded
