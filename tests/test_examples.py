"""The example images: readable, captioned, labeled, and every one named in the notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloob_cli.data.image_folder import list_images
from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.preprocess import open_image
from cloob_cli.recipe import DataSection

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = list_images(EXAMPLES / "pictures")


def test_two_dozen_with_captions() -> None:
    source = open_pairs(DataSection(train=str(EXAMPLES / "pictures")))
    assert len(source) == len(IMAGES) == 24
    assert all(len(source.captions(index)) >= 2 for index in range(24))


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_image(path: Path) -> None:
    assert min(open_image(path).size) >= 64
    lines = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()
    labels = [line.partition(":")[0].strip() for line in lines if line and not line.startswith("#")]
    assert labels.count(path.stem.replace("-", " ")) == 1
    assert len(labels) == len(IMAGES)
    assert (EXAMPLES / "pictures" / "NOTICE.md").read_text(encoding="utf-8").count(path.name) == 1
