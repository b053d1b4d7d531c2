"""The real training data, where its folder is named: CLOOB_PICTOGRAMS=DIR, the one that holds train/ and eval/."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cloob_cli.data.loader import PairLoader
from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.tokenizer import clip_tokenizer
from cloob_cli.recipe import AugmentSection, DataSection

FOLDER = os.environ.get("CLOOB_PICTOGRAMS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="CLOOB_PICTOGRAMS does not name the pictograms' folder")


def test_pairs_of_the_real_set() -> None:
    source = open_pairs(DataSection(train=str(Path(FOLDER or "") / "train")))
    assert len(source) == 155_000
    assert source.blocks is None  # small enough to be mixed as a whole
    assert sum(len(source.captions(index)) for index in range(len(source))) == 499_213
    pairs = np.arange(0, 155_000, 100)
    augment = AugmentSection(shift=2, crop_scale=(0.8, 1.0))
    kept, anew = (
        PairLoader(
            source, pairs, clip_tokenizer(), Preprocess(64), augment, batch_size=500, seed=0, workers=0, in_memory=m
        )
        for m in (True, False)
    )
    for one, two in zip(kept.batches(0), anew.batches(0), strict=True):
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.tokens, two.tokens)
        assert not one.skipped
