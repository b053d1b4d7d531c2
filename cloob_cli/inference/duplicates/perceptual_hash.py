"""Perceptual hashes: 64 bits that stay nearly the same when an image is scaled, saved anew or slightly retouched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cloob_cli.inference.image_batches import OnImage

_SIDE = 32  # pixels of the gray image whose frequencies are looked at
_KEPT = 8  # lowest frequencies in either direction
# What a frequency must have above the median: a wave of a quarter of a gray level. Those of flat and of symmetric
# images are 0 but for rounding and for compression, which would set bits at random.
_MARGIN = 4.0
_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue in gray


def perceptual_hashes(
    paths: Sequence[Path],
    workers: int | None = None,
    memory_budget: int | None = None,
    on_image: OnImage | None = None,
) -> list[int | None]:
    """The hash of each image; None of one that cannot be read. `on_image` is called for each."""
    if not paths:
        return []
    from cloob_cli.core.model_config import PreprocessConfig
    from cloob_cli.data.preprocess import Preprocess
    from cloob_cli.inference.image_batches import image_batches

    squash = Preprocess(_SIDE, PreprocessConfig(resize="squash", interpolation="bilinear"))
    found: list[int | None] = []
    batches = image_batches(
        paths, squash, batch_size=1, workers=workers, memory_budget=memory_budget, on_image=on_image
    )
    for batch in batches:
        found.append(None if batch.failures else hash_of(batch.pixels[0].numpy()))
    return found


def hash_of(pixels: np.ndarray) -> int:
    """The hash of an image, uint8 [32, 32, 3].

    Bit i is set where the i-th of the 8 x 8 lowest frequencies of the discrete cosine transform is clearly above their
    median; the mean, the lowest of all, is left out of the median and has no bit.
    """
    gray = pixels.astype(np.float64) @ _WEIGHTS
    low = _TRANSFORM @ gray @ _TRANSFORM.T
    values = low.reshape(-1)
    bits = values > np.median(values[1:]) + _MARGIN
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """The first rows of the orthonormal discrete cosine transform (type II), [8, 32]."""
    frequencies, places = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    scale = np.where(frequencies == 0, np.sqrt(1 / _SIDE), np.sqrt(2 / _SIDE))
    return np.asarray(scale * np.cos(np.pi * (places + 0.5) * frequencies / _SIDE))


_TRANSFORM = _cosines()
