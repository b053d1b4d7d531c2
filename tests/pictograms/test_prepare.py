"""recipes/pictograms/prepare.py from hand-made packages to training pairs and evaluation sets."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import environment
from pictogram_packages import SCRIPTS, VERSION, icon_set, integrity, tarball, write_packages
from PIL import Image

from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.pairs import open_pairs
from cloob_cli.recipe import DataSection

pytest.importorskip("resvg_py")
import prepare
import rendering

INK = "fill='currentColor'"
HOUSE = f"<path {INK} d='M12 2L2 12h3v9h14v-9h3z'/>"
BOLT = f"<path {INK} d='M13 2L4 14h6l-1 8 9-12h-6z'/>"
RINGS = f"<g {INK}><circle cx='6' cy='6' r='4'/><circle cx='18' cy='18' r='5'/><path d='M4 20L20 4v4L8 20z'/></g>"
FLAG = (
    "<path fill='#d00' d='M0 0h24v8H0z'/><path fill='#00a' d='M0 8h24v8H0z'/><circle cx='5' cy='12' r='5' fill='#fc0'/>"
)
FACE = "<circle cx='12' cy='12' r='11' fill='#fc0'/><circle cx='8' cy='9' r='2'/><path d='M6 15h12v2H6z'/>"
EMOJI = [
    {"label": "grinning face", "hexcode": "1F600", "tags": ["smile", "happy", "teeth", "grinning"]},
    {"label": "flag: Belarus", "hexcode": "1F1E7-1F1FE", "tags": ["BY"]},
]
HELD = '[[evaluation]]\nname = "held"\ntemplates = ["{c}", "{c} icon"]\n'
DIGITS = '[[evaluation]]\nname = "digits"\ntemplates = ["the digit {c}"]\nimages_per_class = 2\n'


def packages(folder: Path) -> Path:
    """Two training sets and one evaluation set, whose house the first has too, smaller and beside the middle."""
    smaller = f"<g transform='translate(3 5) scale(.6)'>{HOUSE}</g>"
    lines = icon_set(
        {"bolt-bold": BOLT, "rings": RINGS, "house-line": smaller, "gone": {"body": BOLT, "hidden": True}},
        suffixes={"bold": "Bold", "line": "Line"},
        categories={"Shapes & Forms": ["rings"]},
        aliases={"olympics": {"parent": "rings"}},
    )
    sets = {
        "lines": (lines, {}),
        "smileys": (icon_set({"grinning-face": FACE, "flag-for-belarus": FLAG}), {"kind": "emoji"}),
        "held": (icon_set({"house": HOUSE, "bolt-2": RINGS.replace("'6'", "'9'")}), {"use": "held"}),
    }
    black = [1] * 784
    digits = {f"src/digits/{digit}.json": {"data": [digit / 9] * 784 + black} for digit in range(10)}
    others = {"faces": ("emoji", {"en/data.json": EMOJI}), "numbers": ("digits", digits)}
    return write_packages(folder, sets, others, HELD + DIGITS)


def run(out: Path, sources: Path, *more: str) -> int:
    return prepare.main([str(out), "--sources", str(sources), "--packages", str(sources.parent), "--quiet", *more])


def contents(out: Path) -> dict[str, bytes]:
    """All files of a result by their paths."""
    files = (path for path in out.rglob("*") if path.is_file() and "work" not in path.relative_to(out).parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The training rows by their source."""
    return {row["source"]: row for file in sorted(out.glob("train/*")) for row in pq.read_table(file).to_pylist()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A result and the sources it was made of."""
    folder = tmp_path_factory.mktemp("pictograms")
    sources = packages(folder / "packages")
    assert run(folder / "out", sources) == 0
    return folder / "out", sources


def test_training_pairs(made: tuple[Path, Path]) -> None:
    out, _ = made
    found = rows(out)
    assert set(found) == {"lines/bolt-bold", "lines/rings", "smileys/grinning-face", "smileys/flag-for-belarus"}
    for row in found.values():
        image = Image.open(io.BytesIO(row["image"]))
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))
    bolt, rings = found["lines/bolt-bold"], found["lines/rings"]
    assert bolt["captions"][0] == "bolt"
    assert "bold" in bolt["captions"][1]
    assert rings["captions"][2:4] == ["olympics", "rings, shapes, forms"]
    assert [row["kind"] for row in (bolt, rings)] == ["icon", "icon"]
    assert found["smileys/flag-for-belarus"]["captions"] == ["flag of Belarus", "Belarus flag emoji", "Belarus"]
    assert found["smileys/flag-for-belarus"]["kind"] == "flag"
    face = found["smileys/grinning-face"]
    assert (face["kind"], face["captions"][0]) == ("emoji", "grinning face")
    assert sorted(face["captions"][2].split(", ")) == ["happy", "smile", "teeth"]  # "grinning" says nothing more
    pairs = open_pairs(DataSection(train=str(out / "train")))
    assert len(pairs) == 4
    assert sorted(pairs.captions(i)[0] for i in range(4)) == sorted(row["captions"][0] for row in found.values())


def test_an_evaluation_set_is_read_as_one(made: tuple[Path, Path]) -> None:
    out, _ = made
    held = open_classification_set(out / "eval" / "held")
    assert held.classes == ["bolt 2", "house"]
    assert held.labels == [0, 1]
    assert held.templates == ["{c}", "{c} icon"]
    image = held.sources[1].open().convert("RGB")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((32, 40)) == (0, 0, 0)  # black on white, whatever training drawings are
    digits = open_classification_set(out / "eval" / "digits")
    assert digits.classes[:3] == ["zero", "one", "two"]
    assert digits.labels == sorted([*range(10), *range(10)])
    assert digits.sources[0].open().convert("L").getpixel((30, 30)) == 255
    assert digits.sources[1].open().convert("L").getpixel((30, 30)) == 0


def test_a_training_drawing_near_an_evaluation_drawing_is_dropped_and_counted(made: tuple[Path, Path]) -> None:
    out, _ = made
    assert "lines/house-line" not in rows(out)
    summary = json.loads((out / "sources.json").read_text(encoding="utf-8"))
    lines = next(one for one in summary["sets"] if one["name"] == "lines")
    assert (lines["available"], lines["chosen"], lines["near"], lines["kept"]) == (3, 3, 1, 2)
    assert summary["counts"] == {"train": 4, "held": 2, "digits": 20}
    assert summary["packages"][0]["version"] == VERSION
    assert "| lines | train | 2 | Some Icons | Somebody | MIT |" in (out / "LICENSES.md").read_text(encoding="utf-8")


def test_without_the_evaluation_set_the_drawing_stays(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, sources = made
    assert run(tmp_path, sources, "--sets", "lines") == 0
    assert "lines/house-line" in rows(tmp_path)
    assert not (tmp_path / "eval").exists()
    assert run(tmp_path / "other", sources, "--sets", "held") == 0
    assert not (tmp_path / "other" / "train").exists()


def test_the_same_bytes_again_in_processes_and_after_an_interruption(made: tuple[Path, Path], tmp_path: Path) -> None:
    out, sources = made
    expected = contents(out)
    assert run(tmp_path, sources, "--workers", "2") == 0
    assert contents(tmp_path) == expected
    kept = sorted((tmp_path / "work" / "rendered").iterdir())
    assert len(kept) == 3
    kept[0].unlink()
    times = [path.stat().st_mtime_ns for path in kept[1:]]
    assert run(tmp_path, sources) == 0
    assert contents(tmp_path) == expected
    assert [path.stat().st_mtime_ns for path in kept[1:]] == times  # only what was missing was rendered
    assert kept[0].exists()


def test_an_interruption_is_no_error_and_the_next_run_goes_on(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sources = made
    render, rendered = rendering.render, []

    def interrupted(job: Any) -> Any:
        if rendered:
            raise KeyboardInterrupt
        rendered.append(job.set)
        return render(job)

    monkeypatch.setattr(rendering, "render", interrupted)
    arguments = [str(tmp_path), "--sources", str(sources), "--packages", str(sources.parent)]
    assert "goes on from here" in problem_of(capsys, 130, arguments)
    assert not (tmp_path / "train").exists()
    assert len(list((tmp_path / "work" / "rendered").iterdir())) == 1
    monkeypatch.setattr(rendering, "render", lambda job: rendered.append(job.set) or render(job))
    assert run(tmp_path, sources) == 0
    assert sorted(rendered) == ["held", "lines", "smileys"]  # each once
    assert contents(tmp_path) == contents(out)


def test_packages_come_from_the_npm_client_once(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.name == "nt":
        pytest.skip("the stand-in for npm is a shell script")
    out, sources = made
    log = tmp_path / "log"
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\nfor last; do :; done\ncp "{sources.parent}/$(echo "$last" | tr @ -).tgz" .\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    arguments = [str(tmp_path / "out"), "--sources", str(sources), "--quiet"]
    assert prepare.main(arguments) == 0
    assert prepare.main(arguments) == 0
    assert contents(tmp_path / "out") == contents(out)
    assert log.read_text().splitlines() == [
        f"pack --silent --ignore-scripts {name}@{VERSION}" for name in ("icons", "faces", "numbers")
    ]


def problem_of(capsys: pytest.CaptureFixture[str], code: int, arguments: list[str]) -> str:
    """The text on stderr of a run that ends with `code`."""
    assert prepare.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_a_package_with_other_bytes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = packages(tmp_path)
    tarball(tmp_path / f"icons-{VERSION}.tgz", {"json/lines.json": icon_set({"bolt": BOLT})})
    arguments = [str(tmp_path / "out"), "--sources", str(sources), "--packages", str(tmp_path)]
    said = problem_of(capsys, 1, arguments)
    assert "is not the package that sources.toml names" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "no_json", "no_set", "other_license", "no_icons"])
def test_a_damaged_package_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    sources = write_packages(tmp_path, {"lines": (icon_set({"bolt": BOLT}), {})})
    path = tmp_path / f"icons-{VERSION}.tgz"
    before = integrity(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        content = {
            "no_json": {"json/lines.json": float("nan")},
            "no_set": {"json/others.json": {}},
            "other_license": {"json/lines.json": icon_set({"bolt": BOLT}, license="GPL-3.0")},
            "no_icons": {"json/lines.json": {"info": {"license": {"spdx": "MIT"}}, "icons": [1]}},
        }[damage]
        tarball(path, content)
    sources.write_text(sources.read_text().replace(before, integrity(path)))
    said = problem_of(capsys, 2, [str(tmp_path / "out"), "--sources", str(sources), "--packages", str(tmp_path)])
    expected = {
        "cut": f"icons-{VERSION}.tgz: ",
        "no_json": "is no icon set",
        "no_set": "there is no json/lines.json in it",
        "other_license": "the set lines is under GPL-3.0, not MIT",
        "no_icons": "is no icon set",
    }[damage]
    assert expected in said


def test_a_process_of_its_own_and_its_exit_codes(made: tuple[Path, Path], tmp_path: Path) -> None:
    out, sources = made

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(SCRIPTS / "prepare.py"), *arguments, "--sources", str(sources)]
        return subprocess.run(words, env=environment(), capture_output=True, encoding="utf-8", timeout=120, check=False)

    done = command(str(tmp_path / "out"), "--packages", str(sources.parent))
    assert (done.returncode, done.stdout) == (0, "")
    assert "4 training pairs; 22 images in 2 evaluation sets; 1 training drawings near" in done.stderr
    assert contents(tmp_path / "out") == contents(out)
    wrong = command(str(tmp_path / "out"), "--sets", "linez")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "there is no set linez" in wrong.stderr
