"""The captions of a whole set as token ids in two flat arrays: made once, then any batch is a matter of indexing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from cloob_cli.data.text import Tokenizer

_AT_ONCE = 20_000  # texts that are tokenised together


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

    def has(self, pair: int) -> bool:
        """Whether the pair has a caption."""
        return bool(self._first[pair + 1] > self._first[pair])

    def batch(self, pairs: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One caption a pair, chosen by its number in [0, 1) -> int64 [B, context] tokens, int64 [B] caption ids."""
        counts = self._first[pairs + 1] - self._first[pairs]
        chosen = self._choices[self._first[pairs] + pick(uniform, counts)]
        starts = self._starts[chosen]
        columns = np.arange(self._context)
        inside = columns < (self._starts[chosen + 1] - starts)[:, None]
        places = np.where(inside, starts[:, None] + columns, 0)
        return np.where(inside, self._tokens[places], self._pad).astype(np.int64), self._hashes[chosen]


def pick(uniform: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) -> whole numbers below `counts`, int64 [B]."""
    return np.minimum((uniform * counts).astype(np.int64), counts - 1)


def caption_id(ids: list[int]) -> int:
    """A number that is equal for captions with equal token ids, the same in every process: int64."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
