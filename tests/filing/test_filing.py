"""Sorting into folders and taking it back, with what goes wrong on the way."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.errors import CloobError, DiskSpaceError, InputError, UsageError
from cloob_cli.filing import placing, undo_file
from cloob_cli.filing.filing import Filed, Filer, ToFile, refuse_nested
from cloob_cli.filing.folder_names import folder_names
from cloob_cli.filing.undo import undo
from cloob_cli.filing.undo_file import Mode, UndoFile
from cloob_cli.filing.xmp import add_keywords, read_keywords

MODES: list[Mode] = ["copy", "hardlink", "symlink", "move"]
CAT, DOG = ("cat",), ("dog",)


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder: contents, times and permissions of files, texts of links."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("folder", status.st_mode)
        else:
            found[name] = ("file", path.read_bytes(), status.st_mtime_ns, status.st_mode)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images of two folders, two of them of one name; a sidecar, a link, a name that is not UTF-8 where that can be."""
    for number, name in enumerate(["a/1.jpg", "a/2.png", "b/1.jpg", "b/3.jpg"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(f"image {number}".encode())
    (tmp_path / "in/a/1.xmp").write_bytes(add_keywords(None, [["holiday"]]))
    (tmp_path / "in/a/1.xmp").chmod(0o640)
    os.utime(tmp_path / "in/a/1.xmp", ns=(10**18, 10**18))
    (tmp_path / "elsewhere.jpg").write_bytes(b"linked")
    os.symlink("../../elsewhere.jpg", tmp_path / "in/a/link.jpg")
    if sys.platform == "linux":
        (tmp_path / os.fsdecode(b"in/b/caf\xe9.jpg")).write_bytes(b"coffee")
    return tmp_path


def images(place: Path) -> list[Path]:
    return sorted(path for path in (place / "in").rglob("*") if path.suffix in {".jpg", ".png"})


def file_all(
    place: Path, mode: Mode, *, keywords: bool = False, labels: tuple[tuple[str, ...], ...] = (CAT, DOG)
) -> list[Filed]:
    with UndoFile(place / "out" / "undo.jsonl") as undo_file:
        filer = Filer(place / "out", mode, folder_names(labels), undo_file)
        results = []
        for number, image in enumerate(images(place)):
            label = labels[number % len(labels)]
            results += filer.file([ToFile(image, [label], [label] if keywords else [])])
        return results


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
@pytest.mark.parametrize("keywords", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_undo_restores_the_tree_to_the_byte(place: Path, mode: Mode, keywords: bool) -> None:
    before = tree(place)
    contents = [image.read_bytes() for image in images(place)]
    results = file_all(place, mode, keywords=keywords)
    assert [result.reason for result in results] == [None] * len(contents)
    targets = [target for result in results for target in result.targets]
    assert [target.read_bytes() for target in targets] == contents
    assert [target.parent.name for target in targets][:4] == ["cat", "dog", "cat", "dog"]
    assert len(set(targets)) == len(targets)
    assert (
        tree(place / "in") == {name[3:]: value for name, value in before.items() if name.startswith("in/")}
        or mode == "move"
    )
    sidecar = place / "out/cat/1.xmp"
    assert sidecar.exists() == (keywords or mode == "move")
    if sidecar.exists():
        assert read_keywords(sidecar.read_bytes())[0] == (["holiday", "cat"] if keywords else ["holiday"])
    undone = undo(place / "out" / "undo.jsonl")
    assert undone.kept == []
    assert tree(place) == before


def test_nothing_is_overwritten(place: Path) -> None:
    (place / "out/cat").mkdir(parents=True)
    (place / "out/cat/1.jpg").write_bytes(b"somebody else's")
    file_all(place, "move", labels=(CAT,))
    assert (place / "out/cat/1.jpg").read_bytes() == b"somebody else's"
    assert {path.name for path in (place / "out/cat").iterdir()} >= {"1-2.jpg", "1-3.jpg", "1-2.xmp"}
    undo(place / "out" / "undo.jsonl")
    assert [path.name for path in (place / "out").rglob("*")] == ["cat", "1.jpg"]


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_a_second_run_adds_nothing(place: Path, mode: Mode) -> None:
    file_all(place, mode)
    first = tree(place)
    file_all(place, mode)
    assert {name for name in tree(place) if "undo" not in name} <= set(first)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_that_is_in_its_place_already_stays(tmp_path: Path, mode: Mode) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"image")
    with UndoFile(tmp_path / "undo.jsonl") as undo_file:
        filer = Filer(tmp_path, mode, folder_names([CAT]), undo_file)
        [result] = filer.file([ToFile(tmp_path / "cat" / "1.jpg", [CAT], [])])
    assert (result.targets, result.reason) == ([tmp_path / "cat" / "1.jpg"], None)
    assert [path.name for path in tmp_path.rglob("*")] == ["cat", "1.jpg"]


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_an_undo_file_never_takes_an_original(tmp_path: Path, mode: Mode) -> None:
    """Not even one in which somebody made the source and the target the same, here by way of a linked folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jpg").write_bytes(b"image")
    os.symlink(tmp_path / "in", tmp_path / "link")
    with UndoFile(tmp_path / "undo.jsonl") as undo_file:
        undo_file.write([placing.plan(mode, tmp_path / "in/1.jpg", tmp_path / "link/1.jpg")])
    [kept] = undo(tmp_path / "undo.jsonl").kept
    assert "it is the original" in kept.reason
    assert (tmp_path / "in" / "1.jpg").read_bytes() == b"image"


@pytest.mark.parametrize("mode", ["copy", "move"])
def test_a_full_disk_leaves_an_undo_file_that_restores_all(
    place: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    before = tree(place)
    calls = 0

    def full(source: Path, target: Path, *further: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            if mode == "copy":
                target.write_bytes(b"im")  # some of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target, *further)

    original: Any = placing.shutil.copyfile if mode == "copy" else placing.rename_new
    monkeypatch.setattr(*((placing.shutil, "copyfile") if mode == "copy" else (placing, "rename_new")), full)
    with pytest.raises(DiskSpaceError, match=r"no space left on device: \d images? sorted") as caught:
        file_all(place, mode)
    assert f"cloob undo {place / 'out' / 'undo.jsonl'}" in (caught.value.hint or "")
    monkeypatch.undo()
    assert not list(place.rglob("*.partial"))
    assert undo(place / "out" / "undo.jsonl").kept == []
    assert tree(place) == before


def test_nothing_is_done_that_the_undo_file_could_not_hold(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(place)
    original, calls = os.write, 0

    def full(handle: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            return original(handle, data[:20])
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle, data)

    monkeypatch.setattr(undo_file.os, "write", full)
    with pytest.raises(CloobError, match="1 image sorted, 0 sidecars written"):
        file_all(place, "move")
    monkeypatch.undo()
    assert sorted(path.name for path in (place / "out").rglob("*.*")) == ["1.jpg", "1.xmp", "undo.jsonl"]
    assert undo(place / "out" / "undo.jsonl").kept == []  # its last line is cut short
    assert tree(place) == before


def test_what_was_changed_since_is_kept(place: Path) -> None:
    file_all(place, "copy", keywords=True)
    (place / "out/cat/1.jpg").write_bytes(b"edited")
    (place / "out/cat/1.xmp").write_bytes(b"edited too")
    (place / "out/dog/own.txt").write_text("of the user")
    undone = undo(place / "out" / "undo.jsonl")
    assert sorted(Path(failure.name).name for failure in undone.kept) == ["1.jpg", "1.xmp"]
    assert sorted(str(path.relative_to(place / "out")) for path in (place / "out").rglob("*")) == [
        "cat", "cat/1.jpg", "cat/1.xmp", "dog", "dog/own.txt", "undo.jsonl",
    ]  # fmt: skip
    for name in ("1.jpg", "1.xmp"):
        (place / "out/cat" / name).unlink()
    assert undo(place / "out" / "undo.jsonl").kept == []
    assert not (place / "out/undo.jsonl").exists()
    assert (place / "out/dog/own.txt").exists()


def test_a_copy_without_its_original_is_kept(place: Path) -> None:
    file_all(place, "copy")
    (place / "in/a/1.jpg").unlink()
    [kept] = undo(place / "out" / "undo.jsonl").kept
    assert "its original" in kept.reason
    assert (place / "out/cat/1.jpg").exists()


def test_a_moved_image_never_returns_over_another(place: Path) -> None:
    file_all(place, "move")
    (place / "in/a/1.jpg").write_bytes(b"a new one")
    [kept] = undo(place / "out" / "undo.jsonl").kept
    assert "there is another file at" in kept.reason
    assert (place / "in/a/1.jpg").read_bytes() == b"a new one"
    assert (place / "out/cat/1.jpg").read_bytes() == b"image 0"


def test_a_hostile_sidecar_is_left_alone_and_named(place: Path) -> None:
    hostile = b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    (place / "in/b/3.xmp").write_bytes(hostile)
    with UndoFile(place / "undo.jsonl") as undo_file:
        filer = Filer(None, "copy", {}, undo_file)
        good, bad = filer.file([ToFile(place / f"in/b/{name}.jpg", [], [CAT]) for name in "13"])
    assert good == Filed()
    assert "its sidecar 3.xmp is left alone: a document type declaration" in (bad.reason or "")
    assert (place / "in/b/3.xmp").read_bytes() == hostile
    assert read_keywords((place / "in/b/1.xmp").read_bytes()) == (["cat"], ["cat"])


def test_two_images_of_one_name_have_sidecars_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("x.jpg", "x.cr2", "y.jpg", "y.txt")]
    for path in paths:
        path.write_bytes(b"image")
    with UndoFile(tmp_path / "undo.jsonl") as undo_file:
        Filer(None, "copy", {}, undo_file).file([ToFile(path, [], [CAT]) for path in paths if path.suffix == ".jpg"])
    assert sorted(path.name for path in tmp_path.glob("*.xmp")) == ["x.jpg.xmp", "y.xmp"]


def test_a_target_within_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "in", tmp_path / "link")
    for target in ("in", "in/deep/er", "link/sorted"):
        with pytest.raises(UsageError, match="lies in"):
            refuse_nested(tmp_path / target, [tmp_path / "in"])
    refuse_nested(tmp_path / "inner", [tmp_path / "in"])
    refuse_nested(tmp_path, [tmp_path / "in"])


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True))
def test_any_labels_have_folders_of_their_own(names: list[str]) -> None:
    folders = folder_names((name,) for name in names)
    shown = [str(folders[(name,)]) for name in names]
    assert len({name.casefold() for name in shown}) == len(names)
    for name in shown:
        assert name not in {"", ".", ".."}
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert not name.startswith(".")
        assert len(name.encode()) < 200


def test_folders_of_a_tree_and_of_names_that_mean_something() -> None:
    labels = [("animal", "cat"), ("animal", "CAT "), ("../x",), ("nul",), ("a" * 400,), ("animal",)]
    folders = [folder_names(labels)[label].as_posix() for label in labels]
    assert folders == ["animal/cat", "animal/CAT-2", "_._x", "nul_", "a" * 120, "animal"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an undo file"),
        (b"[]\n", "is not an undo file"),
        (b'{"cloob_undo": 2, "made_by": "", "folders": []}\n', "of format 2"),
        (b'{"cloob_undo": 1}\n', "first line is damaged"),
        (b'{"cloob_undo": 1, "made_by": "", "folders": []}\n{"do": "format"}\n', "line 2: is not an action"),
    ],
)
def test_files_that_are_no_undo_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=message):
        undo(tmp_path / "file")
