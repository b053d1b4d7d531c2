"""The captions of a whole set as token ids in two flat arrays: made once, then any batch is a matter of indexing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from cloob_cli.data.augment import draw
from cloob_cli.data.random_numbers import uniforms
from cloob_cli.data.tokenizer import Tokenizer

_AT_ONCE = 20_000  # texts that are tokenized together
_FURTHER_DRAWS = 2**32  # a sample's random numbers from here on choose its second, third, ... caption


class CaptionStore:
    """Token ids of every caption of every pair; equal captions are kept once.

    Args:
        captions: for each pair in turn its captions, possibly none.
    """

    def __init__(self, captions: Iterable[list[str]], tokenizer: Tokenizer) -> None:
        numbers: dict[str, int] = {}
        choices: list[int] = []
        first = [0]
        for texts in captions:
            choices.extend(numbers.setdefault(text, len(numbers)) for text in texts)
            first.append(len(choices))
        self._choices = np.array(choices, dtype=np.int64)
        self._first = np.array(first, dtype=np.int64)

        texts = list(numbers)
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        hashes: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            rows = tokenizer.rows(texts[start : start + _AT_ONCE])
            lengths.extend(map(len, rows))
            hashes.extend(map(caption_id, rows))
            parts.append(np.fromiter((number for row in rows for number in row), dtype=np.int32))
        self._tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        self._hashes = np.array(hashes, dtype=np.int64)
        self._context, self._pad = tokenizer.context_length, tokenizer.config.pad_id

    def unique(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """The numbers that tell captions apart, sorted, int64 [n]; and what gives token ids, int64 [B, context], of
        the captions with numbers int64 [B].
        """
        ids, first = np.unique(self._hashes, return_index=True)
        return ids, lambda numbers: self._padded(first[np.searchsorted(ids, numbers)])

    def has(self, pair: int) -> bool:
        """True where the pair has a caption."""
        return bool(self._first[pair + 1] > self._first[pair])

    def batch(self, pairs: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """k captions a pair, chosen by its numbers in [0, 1), float64 [B, k] -> int64 [B, k, context], int64 [B, k].

        The first are token ids, the second tell equal captions by equal numbers.
        """
        first = self._first[pairs]
        chosen = self._choices[first[:, None] + pick(uniform, self._first[pairs + 1] - first)]
        return self._padded(chosen), self._hashes[chosen]

    def _padded(self, texts: np.ndarray) -> np.ndarray:
        """Token ids int64 [..., context] of texts int64 [...] by their place among all."""
        starts = self._starts[texts]
        columns = np.arange(self._context)
        inside = columns < (self._starts[texts + 1] - starts)[..., None]
        places = np.where(inside, starts[..., None] + columns, 0)
        return np.where(inside, self._tokens[places], self._pad).astype(np.int64)


def caption_numbers(seed: int, epoch: int, samples: np.ndarray, random: np.ndarray, count: int) -> np.ndarray:
    """The random numbers that choose `count` captions of each sample -> float64 [B, count], for `pick`.

    Args:
        random: `uniforms(..., len(DRAWS))` of the samples. The first caption's number is among them.
    """
    further = uniforms(seed, epoch, samples, count - 1, first_draw=_FURTHER_DRAWS)
    return np.concatenate([draw(random, "caption")[:, None], further], axis=1)


def pick(uniform: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Choose k of `counts` things, int64 [B], by numbers in [0, 1), float64 [B, k] -> int64 [B, k], below the counts.

    Nothing is chosen twice before everything was chosen once (a shuffle of Fisher and Yates, cut off after k places
    and begun anew where there are fewer things).
    """
    order = np.tile(np.arange(counts.max(initial=1)), (len(counts), 1))
    rows = np.arange(len(counts))
    chosen = np.empty(uniform.shape, dtype=np.int64)
    for number, column in enumerate(uniform.T):
        place = number % counts
        other = place + np.minimum((column * (counts - place)).astype(np.int64), counts - place - 1)
        chosen[:, number] = order[rows, other]
        order[rows, other] = order[rows, place]
        order[rows, place] = chosen[:, number]
    return chosen


def caption_id(ids: list[int]) -> int:
    """A number that is equal for captions with equal token ids, the same in every process: int64."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
