"""Labeled folders and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import save_images

from cloob_cli.errors import CloobError
from cloob_cli.inference.labeled_images import labels_of_folder, read_labeled
from cloob_cli.inference.labels import Label

LABELS = [Label("Red Robin", ("Red Robin", "redbreast")), Label("sea/shore", ("sea/shore",)), Label("dog", ("dog",))]


def test_folders_are_told_by_name_synonym_and_what_sorting_makes_of_them(tmp_path: Path) -> None:
    for folder in ("animal/red_robin", "REDBREAST/deeper", "sea_shore", "something", "animal/dog/x"):
        save_images(tmp_path / folder, 1)
    save_images(tmp_path, 1)  # of no label, not even an unknown one
    found = read_labeled(tmp_path, LABELS)
    shown = [
        (path.parent.relative_to(tmp_path).as_posix(), number)
        for path, number in zip(found.paths, found.labels, strict=True)
    ]
    assert shown == [
        ("REDBREAST/deeper", 0),
        ("animal/dog/x", 2),
        ("animal/red_robin", 0),
        ("sea_shore", 1),
        ("something", -1),
    ]
    assert list(found.others) == ["something"]
    assert [label.name for label in labels_of_folder(tmp_path)] == ["REDBREAST", "animal", "sea shore", "something"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_rows_of_a_file(tmp_path: Path, name: str) -> None:
    texts = {
        "rows.csv": "path,label,probability\na.png,dog,0.5\nb c.png,other,0.1\n",
        "rows.jsonl": '{"path": "a.png", "label": "dog"}\n{"path": "b c.png", "label": "other", "x": 1}\n',
    }
    (tmp_path / name).write_text(texts[name])
    found = read_labeled(tmp_path / name, LABELS)
    assert (found.paths, found.labels) == ([Path("a.png"), Path("b c.png")], [2, -1])
    assert [label.name for label in labels_of_folder(tmp_path / name)] == ["dog", "other"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "dog\n", "neither a folder nor a file of labels"),
        ("rows.csv", "a,b\n1,2\n", "not rows with"),
        ("rows.jsonl", "[]\n", "not rows with"),
        ("rows.jsonl", '{"path": 1, "label": "dog"}\n', "not rows with"),
        ("rows.csv", b"path,label\n\xff,dog\n", "not rows with"),
        ("rows.csv", "path,label\na.png,house\n", "no image has one of the labels"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CloobError, match=message):
        read_labeled(tmp_path / name, LABELS)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CloobError, match="no file or folder"):
        read_labeled(tmp_path / "missing", LABELS)
    save_images(tmp_path / "flat", 2)
    with pytest.raises(CloobError, match="no folders of images"):
        read_labeled(tmp_path / "flat", LABELS)
    save_images(tmp_path / "tree" / "house", 2)
    with pytest.raises(CloobError, match="no image has one of the labels") as caught:
        read_labeled(tmp_path / "tree", LABELS)
    assert "has 'house'" in (caught.value.hint or "")
