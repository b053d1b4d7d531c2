"""stdout and stderr as other programs and machines give them: encodings that lack letters, closed, full, unread."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMAND, cloob, environment
from PIL import Image
from tiny_model import save_tiny_model

from cloob_cli import __version__

NAMES = ["日本語.jpg", "naïve café.jpg", ":cat:.jpg", "[red]x[\\red].jpg", "🐈.jpg"]
LABELS = ["Käfer", "海", "sea"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, labels and images whose names no single-byte encoding holds."""
    folder = tmp_path_factory.mktemp("streams")
    save_tiny_model(folder / "model")
    (folder / "images").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (20, 20), (40 * number, 80, 160)).save(folder / "images" / name)
    (folder / "images" / "壊れた.jpg").write_bytes(b"no image")
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    return folder


def raw(place: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=place, env=environment(**env), capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "encoding", ["cp1252", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ascii:strict", "utf-16"))]
)
def test_an_encoding_that_lacks_letters_loses_no_row(place: Path, encoding: str) -> None:
    arguments = ["classify", "images", "-l", "labels.txt", "-m", "model", "--top-k", 3]
    done = raw(place, *arguments, PYTHONIOENCODING=encoding)
    assert done.returncode == 3, done.stderr
    assert b"Traceback" not in done.stderr
    codec = encoding.partition(":")[0]
    rows = [line.split("\t") for line in done.stdout.decode(codec).splitlines()[1:]]
    assert {row[0] for row in rows} == {f"images/{shown(name, codec)}" for name in NAMES}
    assert all({row[1], row[4], row[7]} == {shown(label, codec) for label in LABELS} for row in rows)


def shown(text: str, codec: str) -> str:
    return text.encode(codec, "backslashreplace").decode(codec)


@pytest.mark.slow
def test_json_stays_json_in_such_an_encoding(place: Path) -> None:
    done = raw(place, "classify", "images", "-l", "labels.txt", "-m", "model", "--json", PYTHONIOENCODING="cp1252")
    objects = [json.loads(line) for line in done.stdout.decode("cp1252").splitlines()]
    assert {one["path"] for one in objects} == {f"images/{name}" for name in NAMES}
    assert {one["label"] for one in objects} <= set(LABELS)


@pytest.mark.slow
def test_every_kind_of_output_takes_what_an_encoding_lacks(place: Path) -> None:
    """Help, errors, warnings and the paths of results, not rows only."""
    env = {"PYTHONIOENCODING": "ascii"}
    assert raw(place, "classify", "--help", **env).returncode == 0
    missing = raw(place, "classify", "無い", "-l", "labels.txt", **env)
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert rb"\u7121\u3044" in missing.stderr
    embedded = raw(place, "embed", "images", "-o", "結果.npy", "-m", "model", **env)
    assert embedded.returncode == 3, embedded.stderr
    assert embedded.stdout.splitlines()[0] == rb"\u7d50\u679c.npy"
    assert (place / "結果.npy").exists()
    assert rb"\u58ca\u308c\u305f.jpg" in embedded.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
@pytest.mark.parametrize("encoding", [pytest.param("utf-8", marks=pytest.mark.slow), "cp1252"])
def test_a_path_that_is_no_text_is_printed_as_its_bytes(place: Path, encoding: str) -> None:
    name = b"caf\xe9.npy"
    done = raw(place, "embed", "images", "-o", os.fsdecode(name), "-m", "model", "-q", PYTHONIOENCODING=encoding)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[0] == name
    assert (place / os.fsdecode(name)).exists()


def test_names_in_warnings_are_not_read_as_markup(place: Path) -> None:
    folder = place / "broken"
    folder.mkdir()
    names = [":cat:.png", "[bold]a[@b].png"]
    for name in names:
        (folder / name).write_bytes(b"no image")
    done = cloob("classify", "broken", "-l", "labels.txt", "-m", "model", cwd=place)
    assert done.returncode == 2
    for name in names:
        assert f"broken/{name}" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
def test_closed_streams_are_no_fault(place: Path) -> None:
    shell = f"exec {sys.executable} -m cloob_cli --version >&- 2>&-"
    done = subprocess.run(["sh", "-c", shell], env=environment(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_result_that_cannot_be_written_is_an_error(buffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--version"],
            env=environment(PYTHONUNBUFFERED=buffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the result cannot be written: No space left on device\n"


def test_help_and_errors_of_usage() -> None:
    version = cloob("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"cloob {__version__}\n", "")
    for arguments in ([], ["zoo"]):
        bare = cloob(*arguments)
        assert (bare.returncode, bare.stderr) == (0, "")
        assert bare.stdout == cloob(*arguments, "--help").stdout
        assert bare.stdout.startswith("Usage: ")
    assert "hf://ORG/REPO[@REVISION]" in "".join(cloob("classify", "--help").stdout.split())
    wrong = cloob("classify", "--no-such-option")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    error, hint = wrong.stderr.splitlines()
    assert error.startswith("error: No such option")
    assert hint.startswith("hint: see ")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
@pytest.mark.parametrize("output", [None, pytest.param("out.csv", marks=pytest.mark.slow)])
def test_a_reader_that_leaves_early(place: Path, tmp_path: Path, output: str | None) -> None:
    """`| head -1`: a file is written whole all the same; a run without one ends quietly."""
    arguments = ["classify", "images", "-l", "labels.txt", "-m", "model", "--json", "--batch-size", "1"]
    command = [*COMMAND, *arguments, *(["-o", str(tmp_path / output)] if output else [])]
    with subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if output:
        assert process.returncode == 3, said  # one image is broken
        with (tmp_path / output).open(encoding="utf-8", newline="") as stream:
            assert len(list(csv.reader(stream))) == 1 + len(NAMES)
    else:
        assert process.returncode == 1, said


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "-l", "labels.txt", "-o", "out.csv"],
        pytest.param(["classify", "-l", "labels.txt", "-o", "out.parquet"], marks=pytest.mark.slow),
        pytest.param(["embed", "-o", "out.npy"], marks=pytest.mark.slow),
    ],
)
def test_an_error_of_writing_names_the_file(place: Path, arguments: list[str]) -> None:
    """A limit of a file's size fails as a full disk does."""
    import resource

    command, *options = arguments
    done = subprocess.run(
        [*COMMAND, command, "images", "-m", "model", *options],
        cwd=place,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)),
    )
    assert done.returncode == 1, done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error == f"error: File too large: {options[-1]}"
    assert not list(place.glob(".*partial"))
