"""Nothing half-written: files appear whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cloob_cli.files import replacing, replacing_folder, replacing_together


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_replaces_on_success(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    for text in ("one", "two"):
        with replacing(target) as temporary:
            temporary.write_text(text)
            assert temporary.parent == target.parent
        assert target.read_text() == text
    assert names(target.parent) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_the_result_is_an_ordinary_file(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            assert temporary.stat().st_mode & 0o077 == 0
    finally:
        os.umask(previous)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")

    def fail_half_way() -> None:
        with replacing_together([tmp_path / "a", tmp_path / "b"]) as [first, second]:
            first.write_text("new")
            second.write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_files_that_belong_together_appear_together(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    targets[2].write_text("of an earlier run")
    with replacing_together(targets) as temporaries:
        for number, temporary in enumerate(temporaries):
            temporary.write_text(str(number))
        assert names(tmp_path)[-1] == "c"
        temporaries[2].unlink()
    assert names(tmp_path) == ["a", "b"]
    assert [target.read_text() for target in targets[:2]] == ["0", "1"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_s_files_are_ordinary_ones(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "private").touch(mode=0o600)
    assert (tmp_path / "folder" / "private").stat().st_mode == ordinary.stat().st_mode
