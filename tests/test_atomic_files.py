"""Nothing half-written: files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloob_cli.atomic_files import existing_folder, remove_abandoned, replacing, replacing_folder, replacing_together

if os.name == "posix":
    import fcntl


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


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their contents are: a power cut after the rename leaves whole files. os.fsync tells what is asked of the disk."""
    target, synced, real = tmp_path / "target", dict[int, int](), os.fsync

    def fsync(handle: int) -> None:
        assert not target.exists()
        state = os.fstat(handle)
        synced[state.st_ino] = state.st_size
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(target) as temporary:
        temporary.write_bytes(b"whole")
    assert synced == {target.stat().st_ino: 5}
    target.unlink()
    synced.clear()
    with replacing_folder(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "a").write_bytes(b"whole")
        (temporary / "deep" / "b").write_bytes(b"as well")
    files = [path for path in target.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert synced == {path.stat().st_ino: path.stat().st_size for path in files}


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


# --- files that stand in the way ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_folder_in_the_place_of_a_file_is_found_before_the_work(tmp_path: Path, place: int) -> None:
    targets = [tmp_path / name for name in "abc"]
    targets[place].mkdir()
    with pytest.raises(IsADirectoryError), replacing_together(targets):
        pytest.fail("the work began")
    assert names(tmp_path) == [targets[place].name]


def test_a_folder_that_came_meanwhile_leaves_all_as_it_was(tmp_path: Path) -> None:
    targets = [tmp_path / name for name in "abc"]
    targets[0].write_text("old")

    def work() -> None:
        with replacing_together(targets) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")
            targets[2].mkdir()

    with pytest.raises(IsADirectoryError):
        work()
    assert names(tmp_path) == ["a", "c"]
    assert targets[0].read_text() == "old"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_takes_back_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, failing: int
) -> None:
    targets = [tmp_path / name for name in "abc"]
    for target in targets[1:]:
        target.write_text(f"old {target.name}")
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(source).suffix == ".partial" and Path(target) == targets[failing]:
            raise PermissionError("somebody else's file")
        rename(source, target)

    def no_link(source: Path, target: Path) -> None:
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(os, "replace", refuse)
    if not links:
        monkeypatch.setattr(os, "link", no_link)

    def work() -> None:
        with replacing_together(targets) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")

    with pytest.raises(PermissionError):
        work()
    assert names(tmp_path) == ["b", "c"]
    assert [target.read_text() for target in targets[1:]] == ["old b", "old c"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "store").mkdir()
    if exists:
        (tmp_path / "store" / "real").write_text("old")
    (tmp_path / "here").symlink_to(Path("store", "real"))
    with replacing(tmp_path / "here") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "here").readlink() == Path("store", "real")
    assert (tmp_path / "store" / "real").read_text() == "new"
    assert names(tmp_path) == ["here", "store"]
    assert names(tmp_path / "store") == ["real"]


# --- what killed processes leave ------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from cloob_cli.atomic_files import replacing_folder, replacing_together

with replacing_together([Path("a"), Path("b")]) as [first, _], replacing_folder(Path("c")) as folder:
    first.write_text("half")
    (folder / "file").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def working(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing two files and a folder in `tmp_path`."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, working: subprocess.Popen[str]) -> None:
    assert len(names(tmp_path)) == 3
    working.kill()
    working.wait()
    assert len(names(tmp_path)) == 3
    with replacing(tmp_path / "other") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["other"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_what_a_living_process_writes_is_left_alone(tmp_path: Path, working: subprocess.Popen[str]) -> None:
    (tmp_path / ".private.partial").touch()  # not ours
    with replacing(tmp_path / "other") as temporary:
        temporary.write_text("whole")
    assert len(names(tmp_path)) == 5
    assert working.stdin is not None
    working.stdin.close()  # go on
    assert working.wait() == 0
    assert names(tmp_path) == [".private.partial", "a", "b", "c", "other"]
    assert (tmp_path / "a").read_text() == "half"


@pytest.mark.parametrize("left", [True, False])
def test_what_was_moved_aside_comes_back_where_nothing_took_its_place(tmp_path: Path, left: bool) -> None:
    aside = tmp_path / ".model.cloob-0123abcd.replaced"
    aside.mkdir()
    (aside / "old").touch()
    if left:
        (tmp_path / "model").mkdir()
    with replacing(tmp_path / "other") as temporary:
        temporary.touch()
    assert names(tmp_path) == ["model", "other"]
    assert names(tmp_path / "model") == ([] if left else ["old"])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_without_locks_only_what_is_old_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    fresh, old = tmp_path / ".a.cloob-00000000.partial", tmp_path / ".a.cloob-11111111.partial"
    fresh.touch()
    old.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    with replacing(tmp_path / "other") as temporary:
        temporary.touch()
    assert names(tmp_path) == [fresh.name, "other"]


# --- killed between two renames -------------------------------------------------------------------------------------

KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from cloob_cli.atomic_files import replacing_together
left = int(sys.argv[1])
def counted(call):
    def counting(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        return call(*arguments, **options)
    return counting
targets = [Path(sys.argv[2], name) for name in sys.argv[3:]]
with replacing_together(targets) as temporaries:
    temporaries[0].write_text("new a")
    temporaries[1].write_text("new b")
    temporaries[2].unlink()  # so c goes
    for name in ("replace", "link", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("earlier", ["", "b", "abc"])
def test_a_kill_at_any_step_of_the_exchange_leaves_all_files_old_or_all_new(tmp_path: Path, earlier: str) -> None:
    old = {name: f"old {name}" for name in earlier}
    seen, steps = [], 0
    while True:
        folder = tmp_path / str(steps)
        folder.mkdir()
        for name, text in old.items():
            (folder / name).write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", KILLED_BETWEEN, str(steps), str(folder), *"abc"], check=False, timeout=60
        )
        remove_abandoned(folder)
        found = {path.name: path.read_text() for path in folder.iterdir()}
        assert found in (old, {"a": "new a", "b": "new b"}), (steps, found)
        seen.append(found == old)
        if done.returncode == 0:
            break
        steps += 1
    assert steps >= 3
    assert seen == sorted(seen, reverse=True)  # old, and from some step on new


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_so_it_is_of_files_in_several_folders_whichever_is_looked_at_first(tmp_path: Path) -> None:
    """The marker is in the first folder; the files in the others must not be taken for abandoned before it is read."""
    targets = ["p/a", "q/b", "r/c"]
    for step in range(50):
        folder = tmp_path / str(step)
        for name in targets:
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text("old")
        done = subprocess.run(
            [sys.executable, "-c", KILLED_BETWEEN, str(step), str(folder), *targets], check=False, timeout=60
        )
        remove_abandoned(folder / "r", folder / "q", folder / "p")
        found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
        assert found in (dict.fromkeys(targets, "old"), {"p/a": "new a", "q/b": "new b"}), (step, found)
        if done.returncode == 0:
            break
    assert 3 <= step < 49


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_step_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with replacing_together([tmp_path / "a", tmp_path / "b"]) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        marker = temporaries[0].with_suffix(".commit")
        handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            marker.write_text(json.dumps([[str(temporaries[0]), str(tmp_path / "a"), True]]))
            remove_abandoned(tmp_path)
            assert (tmp_path / "a").read_text() == "old"
            assert marker.exists()
        finally:
            os.close(handle)
            marker.unlink()
    assert (tmp_path / "a").read_text() == "new"


def test_the_nearest_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing_folder(Path("a") / "b") == tmp_path
    monkeypatch.setattr(os.path, "exists", lambda path: False)  # as with a drive of Windows that is gone
    assert existing_folder(tmp_path / "a") == Path(tmp_path.anchor)
