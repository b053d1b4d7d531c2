"""Suites: what the shipped ones say, class names out of a Python file, zips that are fetched, and what is not here."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import cloob_here, environment
from file_server import Fault, FileServer, serving
from tiny_model import save_tiny_model
from tiny_run import COLORS, write_class_folders

from cloob_cli import assets
from cloob_cli.commands.eval_data import find_data_sets
from cloob_cli.data.classification import open_classification_set
from cloob_cli.errors import ChecksumError, DataError, DownloadError, RecipeError, UsageError
from cloob_cli.evaluation.evaluate import Asked
from cloob_cli.evaluation.python_class_lists import names_and_templates, read_name_lists
from cloob_cli.evaluation.suites import find_suite, read_suite, shipped_suites
from cloob_cli.registry import download, entries, paths
from cloob_cli.registry.datasets import fetched_text, zip_data_set
from cloob_cli.registry.http import RetryPolicy

NAMES = """
import os
colors_classnames = ['Red', "Green", 'Blue', 'Yellow', 'Purple', 'Orange', 'Black', 'White',]
colors_templates = [lambda c: f'a "{c}" thing.', 'paint of {}', lambda c: 'color']
numbers = [1, 2]
os.remove('here')
broken_templates = [lambda c: c.upper()]
"""


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("CLOOB_HOME", str(tmp_path / "home"))
    write_class_folders(tmp_path / "made" / "colors" / "test")
    files = {
        path.relative_to(tmp_path / "made").as_posix(): path.read_bytes()
        for path in sorted((tmp_path / "made").rglob("*.png"))
    }
    with serving(**{"colors.zip": zipped(**files), "names.py": NAMES.encode()}) as running:
        yield running


def test_the_shipped_suites() -> None:
    assert shipped_suites() == ["paper", "pictograms"]
    paper = read_suite(assets.suites_folder() / "paper.toml")
    assert len(paper.datasets) == 8
    scores = {
        name: {score.dataset: score.value for score in entries.find_entry(name).scores}
        for name in ("cloob-rn50-yfcc", "cloob-rn50x4-yfcc")
    }
    for one in paper.datasets:
        for name, known in scores.items():
            [value] = [v for d, v in known.items() if d.lower().replace(" ", "") == one.name.replace("_", "")]
            assert one.published[name] == value
    assert find_suite("paper") == find_suite("paper.toml") == assets.suites_folder() / "paper.toml"
    assert find_suite("flowers") is None


def test_names_are_read_and_not_run() -> None:
    lists = read_name_lists(NAMES, "names.py")
    classes, templates = names_and_templates(lists, "colors", "names.py")
    assert classes[:2] == ["Red", "Green"]
    assert templates == ['a "{c}" thing.', "paint of {}", "color"]
    assert set(lists) == {"colors_classnames", "colors_templates"}
    with pytest.raises(DataError, match="no list birds_classnames"):
        names_and_templates(lists, "birds", "names.py")
    with pytest.raises(DataError, match="cannot be read as Python"):
        read_name_lists("names = [", "names.py")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\nsummary = "y"\n', "'datasets' is missing"),
        ('name = "x"\nsummary = "y"\n[[datasets]]\nname = "a"\nsorce = "b"\n', "sorce"),
        ('name = "x"\nsummary = "y"\n[[datasets]]\nname = "../a"\nsource = "b"\n', "datasets.0.name"),
        ('name = "x"\nsummary = "y"\n[[datasets]]\nname = "a"\nsource = "b"\nnames = "c"\n', "needs names_from"),
        ("name = ", "Invalid"),
    ],
)
def test_a_suite_is_closed_and_checked(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says):
        read_suite(path)
    with pytest.raises(UsageError, match="there is no suite"):
        find_suite(str(tmp_path / "other.toml"))


def test_a_zip_is_fetched_once_and_its_hash_is_kept(server: FileServer) -> None:
    address = f"{server.url}/colors.zip"
    folder = zip_data_set(address, "colors")
    assert open_classification_set(folder).classes == sorted(COLORS)
    requests = len(server.requests)
    assert zip_data_set(address, "colors") == folder
    assert len(server.requests) == requests
    assert not any(path.suffix == ".zip" for path in paths.downloads_folder().iterdir())
    server.files["/colors.zip"] = zipped(a=b"another")
    with pytest.raises(ChecksumError, match="not the file that was expected"):
        zip_data_set(address, "again")
    assert not (paths.datasets_folder() / "again").exists()


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "C:\\outside.png"])
def test_a_zip_stays_in_its_folder(server: FileServer, tmp_path: Path, name: str) -> None:
    server.files["/colors.zip"] = zipped(**{name: b"x"})
    with pytest.raises(DataError, match="lies outside"):
        zip_data_set(f"{server.url}/colors.zip", "colors")
    assert not list(tmp_path.rglob("outside*"))


def test_what_is_no_zip_is_told(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/colors.zip"] = b"<html>not found</html>"
    with pytest.raises(DataError, match="not a zip"):
        zip_data_set(f"{server.url}/colors.zip", "colors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="was not fetched yet"):
        fetched_text(f"{server.url}/names.py")


def write_suite(tmp_path: Path, server: FileServer) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\nsummary = "s"\npublished_by = "a paper"\nnames_from = "{server.url}/names.py"\n'
        f'[[datasets]]\nname = "hues"\nsource = "{server.url}/colors.zip"\nnames = "colors"\n'
        "published = { tiny = 12.5 }\n"
        '[[datasets]]\nname = "local"\nsource = "local"\ntemplates = ["{c}"]\n'
        '[[datasets]]\nname = "nowhere"\nsource = "nowhere"\n'
    )
    write_class_folders(tmp_path / "data" / "local")
    save_tiny_model(tmp_path / "model")
    return path


def test_a_suite_is_measured(server: FileServer, tmp_path: Path) -> None:
    arguments = ("eval", "model", write_suite(tmp_path, server), "--data", "data", "--device", "cpu")
    done = cloob_here(*arguments, "--json", cwd=tmp_path, CLOOB_HOME=str(tmp_path / "home"))
    assert done.returncode == 3, done.stderr
    assert "nowhere is not at data/nowhere; passed over" in done.stderr.replace(os.sep, "/")
    hues, local = json.loads(done.stdout)
    assert (hues["dataset"], local["dataset"]) == ("hues", "local")
    assert hues["published"] == {"acc1": 0.125, "by": "a paper"}
    assert hues["settings"]["templates"] == ['a "{c}" thing.', "paint of {}", "color"]
    assert local["settings"]["templates"] == ["{c}"]
    table = cloob_here(*arguments, "--bootstrap", 0, cwd=tmp_path, CLOOB_HOME=str(tmp_path / "home"))
    header, first, second = [line.split("\t") for line in table.stdout.splitlines()]
    assert header[-1] == "published top-1"
    assert (first[-1], second[-1]) == ("12.5 %", "")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of downloads before another try, of which each has two; nothing waits."""
    found: list[float] = []
    monkeypatch.setattr(download, "RetryPolicy", lambda: RetryPolicy(attempts=3, sleep=found.append))
    return found


def write_suite_of(path: Path, **sources: str) -> str:
    sets = [f'[[datasets]]\nname = "{name}"\nsource = "{source}"\n' for name, source in sources.items()]
    path.write_text('name = "mine"\nsummary = "s"\n' + "".join(sets))
    return str(path)


def test_a_server_that_cannot_be_reached_is_not_tried_for_each_data_set(
    server: FileServer, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is one of a host and a port; what is here, or on another one, is found as ever."""
    zip_data_set(f"{server.url}/colors.zip", "here")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}"
        sources = {"a": f"{gone}/a.zip", "b": f"{gone}/b.zip", "here": f"{gone}/here.zip", "c": f"{gone}/c.zip"}
        suite = write_suite_of(tmp_path / "mine.toml", **sources, other=f"{server.url}/colors.zip")
        found = find_data_sets([suite, suite], Asked(), None)
        assert found.missing == ["a", "b", "c"] * 2
        assert [job.data.name for job in found.jobs] == ["here", "other"] * 2
        assert len(waits) == 2
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert find_data_sets([suite], Asked(), None).missing == ["a", "b", "c"]
        assert len(waits) == 2


@pytest.mark.parametrize("fault", ["status", "cut", "elsewhere"])
def test_a_server_that_answers_is_asked_for_each_data_set(
    server: FileServer, tmp_path: Path, waits: list[float], fault: str
) -> None:
    """Neither a server error nor a broken transfer nor a dead end to which it leads says that it is not there."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}/a.zip"
        faults = {"status": Fault(status=503), "cut": Fault(cut_after=1), "elsewhere": Fault(location=gone)}
        server.faults += [faults[fault]] * 3
        server.files |= {f"/{name}.zip": server.files["/colors.zip"] for name in ("a", "b")}
        sources = {name: f"{server.url}/{name}.zip" for name in ("a", "b")}
        found = find_data_sets([write_suite_of(tmp_path / "mine.toml", **sources)], Asked(), None)
    assert len(waits) == 2
    assert found.missing == ["a"]
    assert [job.data.name for job in found.jobs] == ["b"]


def test_a_suite_of_which_nothing_is_here(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    done = cloob_here("eval", "model", "pictograms", "--data", "data", cwd=tmp_path)
    assert done.returncode == 2
    assert "not one data set is here: emoji_emojione" in done.stderr


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(server: FileServer, tmp_path: Path) -> None:
    write_suite(tmp_path, server)
    (tmp_path / "data" / "local" / "red" / "left.png").write_bytes(b"broken")
    words = ["-m", "cloob_cli", "eval", "model", "data/local", "--json", "--no-cache", "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = []
    for command in ([sys.executable, *words], [*launcher, *words]):
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200)
        assert done.stdout, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert found[0][0]["skipped"] == 1
