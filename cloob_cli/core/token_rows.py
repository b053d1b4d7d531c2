"""Rows of token ids cut to the longest text, without padding that no tower reads."""

from __future__ import annotations

from torch import Tensor

from cloob_cli.core.model_config import TextConfig

_SIZES = 8  # lengths that rows are cut to: as many shapes as torch.compile makes graphs for before it gives up


def cut_to_longest(tokens: Tensor, text: TextConfig) -> Tensor:
    """Token ids int64 [..., context] without the columns behind the longest text -> int64 [..., length].

    A causal tower that reads the end token computes the same embeddings from both. Of another tower, and of rows on a
    GPU, which would have to be waited for, all columns are kept. The length is one of at most eight (every eighth of
    the context), so that a compiled tower meets few shapes.
    """
    if not text.causal or text.pooling != "end" or tokens.is_cuda or not tokens.numel():
        return tokens
    step = -(-text.context_length // _SIZES)
    length = -(-end_of_longest(tokens) // step) * step
    return tokens[..., :length].contiguous() if length < tokens.shape[-1] else tokens


def end_of_longest(tokens: Tensor) -> int:
    """Columns up to and including the last end token, which is the highest id of its row; all where there is no row."""
    return int(tokens.argmax(-1).max()) + 1 if tokens.numel() else tokens.shape[-1]
