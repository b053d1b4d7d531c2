"""One batch of training pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from cloob_cli.errors import Failure


@dataclass
class PairBatch:
    """A rank's share of one batch. `b` is its size less the pairs that could not be read.

    Attributes:
        pixels: uint8 [b, 3, H, W], not yet normalized (`images.normalize`); in channels-last memory order, and on the
            loader's device where the images are kept there.
        tokens: int64 [b, k, context], k captions of each image; cut to the longest if the loader was asked to.
        indices: int64 [b], which pairs of the source.
        caption_ids: int64 [b, k], equal for equal captions.
        skipped: the pairs that are missing.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    indices: torch.Tensor
    caption_ids: torch.Tensor
    skipped: list[Failure] = field(default_factory=list)
