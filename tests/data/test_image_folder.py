from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from cloob_cli.data import image_folder
from cloob_cli.data.image_folder import describe_passed_over, list_images, path_order, scan, suffixes
from cloob_cli.errors import InputError, NothingFoundError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_recursive_sorted_by_suffix_without_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/c.txt", ".hidden.png", ".cache/x.png", "a.webp", "notes.md")
    assert list_images(tmp_path) == [tmp_path / "a/z.png", tmp_path / "a.webp", tmp_path / "b.JPG"]


def test_images_are_in_the_order_of_paths(tmp_path: Path) -> None:
    # Paths compare part by part: `a/z.png` comes before `a b.png`, although a space comes before a slash.
    names = ["a/z.png", "a b.png", "a b/c.png", "a/b/c.png", "a-b.png", "a.png", "a!/x.png", "Z.png", "\u00e4/x.png"]
    touch(tmp_path, *names)
    found = list_images(tmp_path)
    assert found == sorted(tmp_path / name for name in names)
    assert found == sorted(reversed(found), key=path_order)


def test_a_single_file_stands_for_itself(tmp_path: Path) -> None:
    touch(tmp_path, "odd.name")
    assert list_images(tmp_path / "odd.name") == [tmp_path / "odd.name"]


def test_every_suffix_but_heif_is_one_that_pillow_opens() -> None:
    Image.init()
    heif = {".heic", ".heif", ".hif"}
    assert suffixes() - heif <= set(Image.registered_extensions())


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_link_loops_end_and_each_folder_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "images", "one.png", "deep/two.png")
    (tmp_path / "images/deep/up").symlink_to(tmp_path / "images", target_is_directory=True)
    (tmp_path / "images/gone.png").symlink_to(tmp_path / "nothing.png")
    names = [path.name for path in list_images(tmp_path / "images")]
    assert names == ["two.png", "one.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_link_loops_end_where_a_file_system_numbers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "images", "one.png", "deep/two.png")
    (tmp_path / "images/deep/up").symlink_to(tmp_path / "images", target_is_directory=True)
    original = os.stat

    def stat(path: str | Path, **options: bool) -> os.stat_result:
        status = original(path, **options)  # type: ignore[arg-type]
        return os.stat_result((status[0], 0, *status[2:]))

    monkeypatch.setattr(os, "stat", stat)
    names = [path.name for path in list_images(tmp_path / "images")]
    assert names == ["two.png", "one.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "one.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list_images(tmp_path / "images") == [tmp_path / "images/link/one.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_with_a_image_s_name_is_not_opened(tmp_path: Path) -> None:
    touch(tmp_path, "one.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path) == [tmp_path / "one.png"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder at"):
        list_images(tmp_path / "missing")
    with pytest.raises(InputError, match="no file or folder at") as caught:
        list_images(tmp_path / "*.jpg")
    assert "pattern" in str(caught.value.hint)
    with pytest.raises(NothingFoundError, match="it is empty"):
        list_images(tmp_path)
    touch(tmp_path, "a.txt", "b/c.pdf")
    with pytest.raises(NothingFoundError, match="2 other"):
        list_images(tmp_path)


# --- what is passed over --------------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Take the extra `heif`, or a feature of Pillow, away."""

    def take(heif: bool = True, *features: str) -> None:
        monkeypatch.setattr(image_folder, "_has_heif", lambda: heif)
        original = image_folder._has
        monkeypatch.setattr(image_folder, "_has", lambda feature: feature not in features and original(feature))
        image_folder.suffixes.cache_clear()
        image_folder.passed_over.cache_clear()

    yield take
    monkeypatch.undo()
    image_folder.suffixes.cache_clear()
    image_folder.passed_over.cache_clear()


def test_heif_counts_as_readable_with_the_extra_only(tmp_path: Path, without: Callable[..., None]) -> None:
    touch(tmp_path, "a.HEIC", "b.heif", "c.png")
    without(heif=True)
    assert [path.name for path in list_images(tmp_path)] == ["a.HEIC", "b.heif", "c.png"]
    without(heif=False)
    found = scan(tmp_path)
    assert [path.name for path in found.images] == ["c.png"]
    assert describe_passed_over(found.passed_over) == "passed over: 2 HEIC or HEIF (pip install 'cloob[heif]')"


@pytest.mark.parametrize(("form", "suffix"), [("JPEG2000", ".jp2"), ("WEBP", ".webp"), ("AVIF", ".avif")])
def test_what_pillow_opens_is_an_image(form: str, suffix: str) -> None:
    Image.init()
    assert (suffix in suffixes()) == (form in Image.SAVE)  # which is there where the library is


@pytest.mark.parametrize(("feature", "suffix"), [("avif", ".avif"), ("webp", ".webp"), ("jpg_2000", ".jp2")])
def test_a_pillow_that_lacks_a_format(tmp_path: Path, without: Callable[..., None], feature: str, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", "c.png")
    without(True, feature)
    found = scan(tmp_path)
    assert [path.name for path in found.images] == ["c.png"]
    assert "pip install --upgrade pillow" in describe_passed_over(found.passed_over)


def test_what_looks_like_an_image_is_counted_by_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.mpo", "b.jxl", "deep/c.CR3", "deep/d.nef", "deep/.e.nef", "f.psd", "notes.txt")
    found = scan(tmp_path)
    assert [path.name for path in found.images] == ["a.mpo"]
    assert found.passed_over == {"camera raw": 2, "JPEG XL": 1, "Photoshop": 1}
    assert found.others == 1
    text = describe_passed_over(found.passed_over)
    assert text.startswith("passed over: 2 camera raw (develop them to TIFF or JPEG), 1 ")


def test_a_folder_of_such_files_only_says_what_to_do(tmp_path: Path, without: Callable[..., None]) -> None:
    touch(tmp_path, "a.heic", "b.heic", "c.txt")
    without(heif=False)
    with pytest.raises(NothingFoundError, match="2 HEIC or HEIF \\(pip install 'cloob\\[heif\\]'\\); 1 other"):
        scan(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_that_lead_nowhere_and_pipes_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to("nothing.png")
    (tmp_path / "archive").symlink_to("unmounted")
    (tmp_path / "itself").symlink_to("itself")
    os.mkfifo(tmp_path / "pipe.png")
    assert scan(tmp_path).passed_over == {"links that lead nowhere": 3, "pipes, sockets or devices": 1}


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Folders called `name` cannot be listed: as without permission, which would not stop root."""
    original = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "closed/b.png", "open/c.png")
    refuse(monkeypatch, "closed")
    found = scan(tmp_path)
    assert [path.name for path in found.images] == ["a.png", "c.png"]
    assert found.unreadable == [(tmp_path / "closed", "permission denied")]
    with pytest.raises(InputError, match="permission denied"):
        scan(tmp_path / "closed")
    (tmp_path / "a.png").unlink()
    (tmp_path / "open/c.png").unlink()
    with pytest.raises(NothingFoundError, match="1 folder\\(s\\) cannot be read"):
        scan(tmp_path)


def test_a_long_search_can_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "_WATCHED", 10)
    for number in range(25):
        (tmp_path / f"{number}.png").touch()
    counts: list[int] = []
    scan(tmp_path, counts.append)
    assert counts == [10, 10, 5]
