"""Labeled data sets: both layouts, and what is wrong with a broken one."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pair_files import encoded, image
from tiny_run import COLORS, write_class_folders

from cloob_cli.data.classification import open_classification_set
from cloob_cli.errors import DataError, ImageError


def write_webdataset(folder: Path, labels: list[str], classes: list[str], shards: int = 2) -> Path:
    """CLIP_benchmark's layout; image N is `pair_files.image(N)`."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("a sign of {c}\nthe {c}\n", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text(str(shards))
    for shard in range(shards):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for number in range(shard, len(labels), shards):
                members = {"png": encoded(number), "cls": labels[number].encode(), "txt": b"unused"}
                for suffix, data in members.items():
                    member = tarfile.TarInfo(f"s{number:07}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def test_webdataset(tmp_path):
    opened = open_classification_set(write_webdataset(tmp_path / "signs", ["0", "2", "1\n", "2"], ["a", "b", "c d"]))
    assert (opened.name, opened.classes) == ("signs", ["a", "b", "c d"])
    assert opened.templates == ["a sign of {c}", "the {c}"]
    # Shard 0 holds images 0 and 2, shard 1 holds 1 and 3.
    assert opened.labels == [0, 1, 2, 2]
    for index, number in enumerate([0, 2, 1, 3]):
        assert np.array_equal(np.asarray(opened.image(index)), np.asarray(image(number)))


def test_class_folders(tmp_path):
    opened = open_classification_set(write_class_folders(tmp_path / "colors"))
    assert opened.classes == sorted(COLORS)
    assert opened.labels == [label for label in range(8) for _ in range(4)]
    assert opened.image(0).size == (16, 16)
    assert "{c}" in opened.templates


def test_images_that_are_not_in_the_set_are_told(tmp_path):
    folder = write_class_folders(tmp_path / "colors")
    assert open_classification_set(folder).left_out == ()
    image = (folder / "red" / "left.png").read_bytes()
    for name in ("a.png", "b.JPG", ".hidden.png", "labels.txt"):
        (folder / name).write_bytes(image)
    for name in ("red/drawing.svg", "blue/drawing.svg"):
        (folder / name).write_bytes(b"<svg/>")
    opened = open_classification_set(folder)
    assert len(opened) == 4 * len(COLORS)
    assert opened.left_out == (
        "2 images beside the folders of the classes left out",
        "passed over: 2 SVG (convert them to PNG or JPEG)",
    )


def test_one_broken_image_is_an_error_of_its_own(tmp_path):
    folder = write_class_folders(tmp_path / "colors")
    (folder / "black" / "left.png").write_bytes(b"")
    opened = open_classification_set(folder)
    broken = [index for index, source in enumerate(opened.sources) if source.path.stat().st_size == 0]
    with pytest.raises(ImageError):
        opened.image(broken[0])


@pytest.mark.parametrize("spoil", ["class", "label", "tar", "middle", "nshards", "names", "gone", "missing"])
def test_a_broken_set_says_what_is_wrong(tmp_path, spoil):
    labels = {"class": ["0", "7"], "label": ["0", "zero"]}.get(spoil, ["0", "1"])
    folder = write_webdataset(tmp_path / "signs", labels, ["a", "b"])
    if spoil == "tar":
        (folder / "test" / "1.tar").write_bytes(b"no tar" * 200)
    elif spoil == "middle":  # tarfile by itself stops there without a word, and the set is a smaller one
        labels = ["0", "1"] * 3
        folder = write_webdataset(tmp_path / "more signs", labels, ["a", "b"], shards=1)
        path = folder / "test" / "0.tar"
        with tarfile.open(path) as tar:
            place = tar.getmembers()[6].offset
        content = bytearray(path.read_bytes())
        content[place : place + 512] = b"\xff" * 512
        path.write_bytes(content)
    elif spoil == "nshards":
        (folder / "test" / "nshards.txt").write_text("two")
    elif spoil == "names":
        (folder / "classnames.txt").write_bytes(b"\xff\xfe\xff")
    elif spoil == "gone":
        (folder / "test" / "0.tar").unlink()
    elif spoil == "missing":
        folder = tmp_path / "nowhere"
    with pytest.raises(DataError, match=str(folder.name)) as caught:
        open_classification_set(folder)
    assert "\n" not in caught.value.message


def test_an_empty_folder_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no labeled image"):
        open_classification_set(tmp_path)


@pytest.mark.skipif("CLOOB_PICTOGRAMS" not in os.environ, reason="CLOOB_PICTOGRAMS names no folder of pictogram data")
@pytest.mark.parametrize(("name", "images", "classes"), [("flags_circle", 245, 245), ("icons_kameleon", 200, 196)])
def test_the_pictogram_sets(name, images, classes):
    opened = open_classification_set(Path(os.environ["CLOOB_PICTOGRAMS"]) / "eval" / name)
    assert (len(opened), len(opened.classes)) == (images, classes)
    assert all(opened.image(index).size == (64, 64) for index in (0, len(opened) - 1))
