"""Batches of decoded images: order, bounds, failures."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_hostile_images, save_images

from cloob_cli.data.preprocess import Preprocess
from cloob_cli.errors import Failure, InputError
from cloob_cli.inference import image_batches as image_batches_module
from cloob_cli.inference.image_batches import collect_images, image_batches
from cloob_cli.path_text import path_text

PREPROCESS = Preprocess(32)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_order_and_pixels(tmp_path: Path, workers: int, batch_size: int) -> None:
    paths = save_images(tmp_path, 10)
    batches = list(image_batches(paths, PREPROCESS, batch_size=batch_size, workers=workers))
    assert [len(batch.paths) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [path for batch in batches for path in batch.paths] == [str(path) for path in paths]
    alone = [PREPROCESS.crop(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(torch.cat([batch.pixels for batch in batches]), np.stack(alone))


@pytest.mark.parametrize("workers", [0, 3])
def test_unreadable_images_are_listed_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    hostile = save_hostile_images(tmp_path)
    good = save_images(tmp_path / "zz", 3)
    paths = [tmp_path / name for name in hostile] + good
    batches = list(image_batches(paths, PREPROCESS, batch_size=2, workers=workers))
    assert [path for batch in batches for path in batch.paths] == [str(path) for path in good]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [failure.name for failure in failures] == [str(tmp_path / name) for name in hostile]
    reasons = {Path(failure.name).name: failure.reason for failure in failures}
    assert "truncated" in reasons["truncated.jpg"]
    assert "empty" in reasons["empty.png"]
    assert "too large" in reasons["bomb.png"]
    assert "not an image" in reasons["misnamed.png"]


def test_every_image_is_told_as_soon_as_it_is_read(tmp_path: Path) -> None:
    paths = save_images(tmp_path, 4)
    paths[1].write_bytes(b"no image")
    told: list[Failure | None] = []
    batches = image_batches(paths, PREPROCESS, batch_size=2, workers=0, on_image=told.append)
    next(batches)  # the failure, long before its batch is full
    assert [failure and failure.name for failure in told] == [None, str(paths[1])]
    next(batches)
    assert told[2:] == [None]
    list(batches)
    assert told[2:] == [None, None]


def test_a_decoder_that_raises_anything_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_images(tmp_path, 3)
    broken = paths[1]
    original = image_batches_module.read_crop

    def read_crop(path: Path, *further: Any, **options: Any) -> np.ndarray:
        if path == broken:
            raise RecursionError("too deep")
        return original(path, *further, **options)

    monkeypatch.setattr(image_batches_module, "read_crop", read_crop)
    failed, batch = image_batches(paths, PREPROCESS, batch_size=8, workers=2)
    assert [failure.reason for failure in failed.failures] == ["RecursionError: too deep"]
    assert len(batch.paths) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    [batch] = image_batches([tmp_path / "pipe.png"], PREPROCESS, batch_size=1, workers=1)
    assert batch.failures[0].reason == "not a regular file"
    assert batch.pixels.shape == (0, 32, 32, 3)


def test_no_more_than_two_batches_are_read_ahead(tmp_path: Path) -> None:
    [image] = save_images(tmp_path, 1)
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield image

    batches = image_batches(endless(), PREPROCESS, batch_size=8, workers=4)
    for number in range(1, 6):
        next(batches)
        time.sleep(0.02)  # whatever runs ahead has the time to
        assert taken <= 8 * number + 8 + 4
    batches.close()


def test_leaving_early_stops_the_threads(tmp_path: Path) -> None:
    batches = image_batches(save_images(tmp_path, 20), PREPROCESS, batch_size=2, workers=3)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cloob")]


def test_large_images_are_made_smaller_unless_exact(tmp_path: Path) -> None:
    save_images(tmp_path, 1, size=(1600, 1200), suffix=".jpg")
    save_images(tmp_path, 2, size=(1600, 1200), suffix=".png")
    save_images(tmp_path / "small", 1, size=(160, 120), suffix=".jpg")
    paths = collect_images([tmp_path]).items
    [exact] = image_batches(paths, PREPROCESS, batch_size=4, exact=True)
    [scaled] = image_batches(paths, PREPROCESS, batch_size=4)
    np.testing.assert_array_equal(exact.pixels[0], PREPROCESS.crop(Image.open(paths[0])))
    difference = (exact.pixels.int() - scaled.pixels.int()).abs().amax((1, 2, 3))
    assert [int(one) > 0 for one in difference] == [True, True, True, False]
    assert difference.max() <= 16


def test_collects_each_image_once_in_the_order_of_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = save_images(tmp_path / "b", 2)
    [single] = save_images(tmp_path / "a", 1)
    assert collect_images([inside[1], tmp_path / "b", single]).items == [inside[1], inside[0], single]
    monkeypatch.chdir(tmp_path)
    assert collect_images([Path("b"), inside[1], Path("a/../b")]).items == [Path("b/0000.png"), Path("b/0001.png")]


def test_a_failure_is_told_before_the_batch_is_full(tmp_path: Path) -> None:
    good = save_images(tmp_path, 3)
    (tmp_path / "0000b.png").touch()
    batches = list(image_batches(collect_images([tmp_path]).items, PREPROCESS, batch_size=3, workers=1))
    assert [[Path(failure.name).name for failure in batch.failures] for batch in batches] == [["0000b.png"], []]
    assert batches[1].paths == [str(path) for path in good]


def test_missing_arguments_are_failures_unless_all_are(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    [single] = save_images(tmp_path / "a", 1)
    missing, *rest = collect_images([tmp_path / "missing", single, tmp_path / "empty"]).items
    assert missing == Failure(str(tmp_path / "missing"), f"no file or folder at {tmp_path / 'missing'}")
    assert rest[0] == single
    assert isinstance(rest[1], Failure)
    assert "no images in" in rest[1].reason
    with pytest.raises(InputError, match="missing"):
        collect_images([tmp_path / "missing", tmp_path / "empty"])


def test_folders_that_cannot_be_listed_are_failures_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [save_images(tmp_path / name, 1)[0] for name in "abc"]
    original = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = Failure(str(tmp_path / "b"), "the folder cannot be read: permission denied")
    items = collect_images([tmp_path]).items
    assert items == [good[0], closed, good[2]]
    batches = list(image_batches(items, PREPROCESS, batch_size=2))
    assert [failure for batch in batches for failure in batch.failures] == [closed]
    assert [path for batch in batches for path in batch.paths] == [str(good[0]), str(good[2])]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_become_text(tmp_path: Path) -> None:
    [image] = save_images(tmp_path, 1)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    image.rename(odd)
    [batch] = image_batches(collect_images([tmp_path]).items, PREPROCESS, batch_size=1)
    assert batch.paths == [f"{tmp_path}/caf\\xe9.png"] == [path_text(odd)]
