from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from cloob_cli.data.folder import list_images, suffixes
from cloob_cli.errors import InputError, NothingFoundError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_recursive_sorted_by_suffix_without_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/c.txt", ".hidden.png", ".cache/x.png", "a.webp", "notes.md")
    assert list_images(tmp_path) == [tmp_path / "a/z.png", tmp_path / "a.webp", tmp_path / "b.JPG"]


def test_a_single_file_stands_for_itself(tmp_path: Path) -> None:
    touch(tmp_path, "odd.name")
    assert list_images(tmp_path / "odd.name") == [tmp_path / "odd.name"]


def test_every_suffix_but_heif_is_one_that_pillow_opens() -> None:
    Image.init()
    heif = {".heic", ".heif", ".hif"}
    assert suffixes() - heif <= set(Image.registered_extensions())


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_link_loops_end_and_each_folder_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "pictures", "one.png", "deep/two.png")
    (tmp_path / "pictures/deep/up").symlink_to(tmp_path / "pictures", target_is_directory=True)
    (tmp_path / "pictures/gone.png").symlink_to(tmp_path / "nothing.png")
    names = [path.name for path in list_images(tmp_path / "pictures")]
    assert names == ["two.png", "one.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "one.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list_images(tmp_path / "pictures") == [tmp_path / "pictures/link/one.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_with_a_picture_s_name_is_not_opened(tmp_path: Path) -> None:
    touch(tmp_path, "one.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path) == [tmp_path / "one.png"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        list_images(tmp_path / "missing")
    with pytest.raises(NothingFoundError, match="it is empty"):
        list_images(tmp_path)
    touch(tmp_path, "a.txt", "b/c.pdf")
    with pytest.raises(NothingFoundError, match="2 other"):
        list_images(tmp_path)
