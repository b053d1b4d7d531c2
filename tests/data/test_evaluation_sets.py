"""Labeled tables, splits, and captioned sets for evaluation."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import captions_of, encoded, image, write_folder, write_parquet
from tiny_run import COLORS, write_class_folders

from cloob_cli.data.captioned_images import open_captioned_set
from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.content_digest import digest_of_images
from cloob_cli.errors import DataError


def write_retrieval_set(folder: Path, captions: list[list[str]]) -> Path:
    """CLIP_benchmark's layout for retrieval; image N is `pair_files.image(N)`."""
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval")
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, texts in enumerate(captions):
            for suffix, data in {"png": encoded(number), "txt": "\n".join(texts).encode()}.items():
                member = tarfile.TarInfo(f"s{number:07}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder


def write_labeled_parquet(path: Path, labels: list[object], names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [{"bytes": encoded(n), "path": None} for n in range(len(labels))], "label": labels})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def write_labeled_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    write_folder(path.parent / "images", range(len(rows)))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def same_pixels(found: object, number: int) -> bool:
    return np.array_equal(np.asarray(found), np.asarray(image(number)))


def test_parquet_with_numbers_and_the_names_that_hugging_face_writes(tmp_path: Path) -> None:
    folder = tmp_path / "signs"
    write_labeled_parquet(folder / "data" / "train-00000-of-00001.parquet", [1, 1, 1], ["stop", "go"])
    write_labeled_parquet(folder / "data" / "test-00000-of-00002.parquet", [0, 1], ["stop", "go"])
    write_labeled_parquet(folder / "data" / "test-00001-of-00002.parquet", [1], ["stop", "go"])
    opened = open_classification_set(folder)
    assert (opened.classes, opened.labels) == (["stop", "go"], [0, 1, 1])
    assert same_pixels(opened.image(1), 1)
    assert same_pixels(opened.image(2), 0)
    assert [path.name for path, _ in opened.places()][1:] == [
        "test-00000-of-00002.parquet",
        "test-00001-of-00002.parquet",
    ]
    assert len(open_classification_set(folder, "train")) == 3
    with pytest.raises(DataError, match="no split 'val'") as caught:
        open_classification_set(folder, "val")
    assert caught.value.hint == "splits there: test, train"


def test_parquet_with_names_as_labels(tmp_path: Path) -> None:
    opened = open_classification_set(write_labeled_parquet(tmp_path / "signs.parquet", ["stop", "go", "go"]))
    assert (opened.name, opened.classes, opened.labels) == ("signs", ["go", "stop"], [1, 0, 0])


def test_a_table_with_a_column_for_the_split(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": f"images/{n:03}.png", "class": name, "split": split}
        for n, (name, split) in enumerate([("go", "train"), ("stop", "test"), ("halt", "train"), ("go", "test")])
    ]
    path = write_labeled_csv(tmp_path / "signs.csv", rows)
    opened = open_classification_set(path)
    assert opened.classes == ["go", "halt", "stop"]  # also those that only the other split has
    assert opened.labels == [2, 0]
    assert same_pixels(opened.image(0), 1)
    assert len(open_classification_set(path, "train")) == 2


@pytest.mark.parametrize("spoil", ["label", "split", "names", "kind"])
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, spoil: str) -> None:
    rows: list[dict[str, object]] = [{"path": "images/000.png", "label": 7}]
    message, split = (
        {"label": "no column for the label", "split": "no split", "names": "class 7", "kind": "unknown"},
        "test",
    )
    if spoil == "label":
        rows = [{"path": "images/000.png", "lable": 7}]
    path = write_labeled_csv(tmp_path / "signs.csv", rows)
    if spoil == "split":
        split = "train"
    elif spoil == "names":
        (tmp_path / "classnames.txt").write_text("a\nb\n")
    elif spoil == "kind":
        path = path.rename(tmp_path / "signs.xlsx")
    with pytest.raises(DataError, match=message[spoil]) as caught:
        open_classification_set(path, split)
    assert "\n" not in caught.value.message


def test_folders_of_classes_for_each_split(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "colors" / "train")
    write_class_folders(tmp_path / "colors" / "test")
    shutil.rmtree(tmp_path / "colors" / "test" / "red")
    assert len(open_classification_set(tmp_path / "colors", "train")) == 32
    opened = open_classification_set(tmp_path / "colors")
    assert len(opened) == 28
    with pytest.raises(DataError, match="no split 'val'"):
        open_classification_set(tmp_path / "colors", "val")
    write_class_folders(tmp_path / "plain")
    assert open_classification_set(tmp_path / "plain").classes == sorted(COLORS)
    with pytest.raises(DataError, match="no split 'train'"):
        open_classification_set(tmp_path / "plain", "train")


def test_captions_of_a_benchmark_set_are_lines(tmp_path: Path) -> None:
    captions = [["a dog", "two dogs"], ["a cat"], ["nothing", "at", "all"]]
    opened = open_captioned_set(write_retrieval_set(tmp_path / "flickr", captions))
    assert (opened.name, opened.captions) == ("flickr", captions)
    assert same_pixels(opened.image(2), 2)


def test_rows_that_name_one_image_are_one_image(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": "images/000.png", "caption": "a dog"},
        {"image": "images/001.png", "caption": "a cat"},
        {"image": "images/000.png", "caption": "two dogs"},
        {"image": "images/002.png", "caption": ""},
    ]
    opened = open_captioned_set(write_labeled_csv(tmp_path / "pairs.csv", rows))
    assert opened.captions == [["a dog", "two dogs"], ["a cat"]]
    assert [failure.reason for failure in opened.left_out] == ["no caption"]
    assert len(opened.places()) == 2


def test_pairs_of_other_forms(tmp_path: Path) -> None:
    for path in (write_folder(tmp_path / "folder", range(4)), write_parquet(tmp_path / "pairs.parquet", range(4))):
        opened = open_captioned_set(path)
        assert opened.captions == [captions_of(number) for number in range(4)]
        assert same_pixels(opened.image(3), 3)


def test_one_image_is_no_retrieval(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 1 image\(s\) with captions"):
        open_captioned_set(write_folder(tmp_path / "folder", range(1)))


def test_the_digest_is_of_contents_and_not_of_names(tmp_path: Path) -> None:
    one, other = write_folder(tmp_path / "one", range(3)), write_folder(tmp_path / "other", range(3))

    def places(folder: Path) -> list[tuple[Path, int]]:
        return [(path, 0) for path in sorted(folder.glob("*.png"))]

    before = digest_of_images(places(one))
    assert before == digest_of_images(places(other))
    assert before != digest_of_images(places(one)[::-1])
    assert before != digest_of_images(places(one)[:2])
    assert digest_of_images([(one / "000.png", 0), (one / "000.png", 9)]) != digest_of_images(
        [(one / "000.png", 0)] * 2
    )
    (other / "001.png").write_bytes(encoded(7))
    assert before != digest_of_images(places(other))
