"""One batch of training pairs, and the reader that makes it pair by pair."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from cloob_cli.data.augment import DRAWS, color_jitter, move
from cloob_cli.data.caption_tokens import caption_id, caption_numbers, pick
from cloob_cli.data.decoded_images import ImageDecoder, cropped
from cloob_cli.data.pairs import PairSource
from cloob_cli.data.random_numbers import uniforms
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import Failure, ImageError
from cloob_cli.recipe import AugmentSection


@dataclass
class PairBatch:
    """A rank's part of one batch. `b` is its size less the pairs that could not be read.

    Attributes:
        pixels: uint8 [b, 3, H, W], not yet normalized (`images.normalize`); in channels-last memory order, and on the
            loader's device where the images are kept there. Where a tower's features are kept: those, float32 [b, W].
        tokens: int64 [b, k, context], k captions of each image; cut to the longest if the loader was asked to. Where
            the text tower's features are kept: those, float32 [b, k, W].
        indices: int64 [b], which pairs of the source.
        caption_ids: int64 [b, k], equal for equal captions.
        skipped: the pairs that are missing.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    indices: torch.Tensor
    caption_ids: torch.Tensor
    skipped: list[Failure] = field(default_factory=list)


class PairReader:
    """Reads and changes pairs one by one; what a worker process is sent."""

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        decoder: ImageDecoder,
        augment: AugmentSection,
        seed: int,
        captions_per_image: int,
    ) -> None:
        self.source, self.tokenizer, self.decoder, self.augment, self.seed = source, tokenizer, decoder, augment, seed
        self.captions_per_image = captions_per_image

    def augment_at(self, size: int) -> AugmentSection:
        """The random changes of images of `size` pixels: a shift is counted in pixels of the full size."""
        if size == self.decoder.size or not self.augment.shift:
            return self.augment
        return self.augment.model_copy(update={"shift": round(self.augment.shift * size / self.decoder.size)})

    def __getitem__(self, key: tuple[int, np.ndarray, int]) -> PairBatch:
        """Pairs of one epoch, (epoch, int64 [b], image size) -> their part of a batch. (The name is DataLoader's.)"""
        epoch, pairs, size = key
        augment = self.augment_at(size)
        kept, images, texts, skipped = [], [], [], []
        for index in pairs.tolist():
            try:
                captions = self.source.captions(index)
                if not captions:
                    raise ImageError("no caption")
                images.append(self.decoder.decode(self.source, index))
                texts.append(captions)
                kept.append(index)
            except ImageError as problem:
                skipped.append(Failure(self.source.name(index), problem.message))
        numbers = np.array(kept, dtype=np.int64)
        random = uniforms(self.seed, epoch, numbers, len(DRAWS))
        choosing = caption_numbers(self.seed, epoch, numbers, random, self.captions_per_image)
        choices = pick(choosing, np.array([len(captions) for captions in texts], dtype=np.int64))
        rows = self.tokenizer.rows(
            [captions[choice] for captions, chosen in zip(texts, choices, strict=True) for choice in chosen]
        )
        crops = cropped(images, random, augment, size)
        moved = move(crops, torch.arange(len(crops)), random, augment)
        return PairBatch(
            color_jitter(moved, random, augment).permute(0, 3, 1, 2),
            self.tokenizer.padded(rows).unflatten(0, choices.shape),
            torch.from_numpy(numbers),
            torch.tensor([caption_id(row) for row in rows], dtype=torch.int64).unflatten(0, choices.shape),
            skipped,
        )
