"""The captions that are drawn: several of an image in one step, none twice where there are enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from margins import within
from pair_files import write_parquet

from cloob_cli.data.augment import DRAWS, draw
from cloob_cli.data.caption_tokens import caption_numbers, pick
from cloob_cli.data.loader import PairLoader
from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.random_numbers import uniforms
from cloob_cli.data.tokenizer import train_bpe
from cloob_cli.recipe import AugmentSection, DataSection


def numbers(samples: np.ndarray, count: int, epoch: int = 3) -> np.ndarray:
    return caption_numbers(7, epoch, samples, uniforms(7, epoch, samples, len(DRAWS)), count)


def test_the_first_of_several_captions_is_the_one_that_is_drawn_alone() -> None:
    samples = np.arange(500)
    counts = 1 + samples % 6
    alone = np.floor(draw(uniforms(7, 3, samples, len(DRAWS)), "caption") * counts)
    for count in (1, 2, 5):
        np.testing.assert_array_equal(pick(numbers(samples, count), counts)[:, 0], alone)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_none_is_drawn_twice_before_all_were_drawn_once(count: int) -> None:
    samples = np.arange(300)
    counts = 1 + samples % 8
    for row, captions in zip(pick(numbers(samples, count), counts), counts.tolist(), strict=True):
        for start in range(0, count, captions):
            piece = row[start : start + captions].tolist()
            assert len(set(piece)) == len(piece)
            assert set(piece) <= set(range(captions))


@pytest.mark.numeric
def test_every_order_of_captions_comes_about_equally_often() -> None:
    samples = np.arange(6000)
    drawn = pick(numbers(samples, 3), np.full(len(samples), 3))
    _, often = np.unique(drawn, axis=0, return_counts=True)
    # 1,000 expected of each of the six orders; the standard deviation is 29, so 150 is five of them.
    assert len(often) == 6
    within(np.abs(often - 1000).max(), 150, "five deviations")


@pytest.mark.numeric
def test_the_draws_of_one_place_do_not_follow_from_those_of_another() -> None:
    first, second = numbers(np.arange(4000), 2).T
    within(abs(np.corrcoef(first, second)[0, 1]), 0.08, "five deviations of 0.016")
    again = numbers(np.arange(4000), 2, epoch=4)[:, 1]
    within(abs(np.corrcoef(second, again)[0, 1]), 0.08, "five deviations of 0.016")


def test_a_batch_holds_several_captions_of_each_image(tmp_path: Path) -> None:
    texts = [[f"{word} {number}" for word in ("one", "two", "three", "four")[: 1 + number % 4]] for number in range(12)]
    tokenizer = train_bpe([text for several in texts for text in several], 560, context_length=10)
    source = open_pairs(DataSection(train=str(write_parquet(tmp_path / "t.parquet", range(12)))))
    source.captions = lambda index: texts[index]  # type: ignore[method-assign]
    options: dict = {"batch_size": 12, "seed": 0, "workers": 0, "captions_per_image": 3}
    kept, anew = (
        PairLoader(source, None, tokenizer, Preprocess(16), AugmentSection(), in_memory=in_memory, **options)
        for in_memory in (True, False)
    )
    batch, other = next(kept.batches(0)), next(anew.batches(0))
    assert (batch.tokens == other.tokens).all()
    assert (batch.caption_ids == other.caption_ids).all()
    assert batch.tokens.shape == (12, 3, 10)
    for index, rows, ids in zip(batch.indices.tolist(), batch.tokens, batch.caption_ids, strict=True):
        own = tokenizer(texts[index]).tolist()
        seen = [own.index(row) for row in rows.tolist()]
        assert len(set(seen)) == min(3, len(own))
        assert len(set(ids.tolist())) == len(set(seen))
