"""A model's fingerprint: what it makes of fixed images and texts, stored with it and recomputed on request.

Hashes show that files are the same; the fingerprint shows that they still mean the same, with this version of
cloob, torch, Pillow and tokenizers. Images and texts are made by code. Every stage is compared on its own, so that
the error names the one that is wrong: what preprocessing makes of the images, what the tokenizer makes of the texts,
and what the towers make of a fixed pattern of pixels and of those ids.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli.errors import ModelFolderError, VerificationError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from cloob_cli.core.model import CloobModel

FINGERPRINT_FILE = "fingerprint.safetensors"

TEXTS = [
    "a photo of a red bicycle",
    "Two CATS &amp; one dog,  42 times!",
    "自転車の写真",
    "a very long story about " + "mountains, rivers and " * 40 + "the sea",
]
_SIZES = ((160, 120), (97, 131), (64, 64))  # width, height: wide, tall and square

# Resamplers of other processors may round some pixels otherwise, by one graylevel of 255 (0.015 after normalization);
# another filter or another normalization moves most of them.
_PIXEL_TOLERANCE, _MEAN_PIXEL_TOLERANCE = 0.03, 0.002

# Largest difference of a coordinate of two unit embeddings. Processors differ by some 1e-7 in float32; erf and tanh
# GELU, the nearest wrong thing, by 2e-5 and more.
_FLOAT32_TOLERANCE = 5e-6
_HALF_TOLERANCE = 2e-2


def compute_fingerprint(model: CloobModel) -> dict[str, Tensor]:
    """Compute what a loaded model makes of the fixed inputs.

    Returns:
        `tokens` int64 [T, context]; `pixels` float32, some pixels of every preprocessed image;
        `image_embeddings` [2, D] and `text_embeddings` [T, D], float32 of unit norm. All on the CPU.
    """
    import torch

    if model.preprocess is None or model.tokenize is None:
        raise VerificationError("a fingerprint needs a model with its preprocessing and tokenizer")
    device = model.logit_scale.device
    pixels = torch.stack([model.preprocess(image) for image in fixed_images()])
    tokens = _tokens(model.tokenize)
    with torch.inference_mode():
        images = model.encode_image(_fixed_pixels(pixels.shape[-1]).to(device))
        # Only a model with a cut-down vocabulary has fewer entries than its tokenizer.
        texts = model.encode_text(tokens.clamp(max=model.config.text.vocab_size - 1).to(device))
    step = max(1, pixels.shape[-1] // 32)
    return {
        "tokens": tokens,
        "pixels": pixels[:, :, ::step, ::step].contiguous(),
        "image_embeddings": images.float().cpu(),
        "text_embeddings": texts.float().cpu(),
    }


def compare_fingerprint(model: CloobModel, expected: dict[str, Tensor]) -> str:
    """Compare what a model computes with its stored fingerprint; gives a line that says how near it is.

    Only float32 can tell apart neighboring activations, like GELU's erf and tanh forms.

    Raises:
        VerificationError: a stage gives something else; the first one is named.
    """
    import torch

    found = compute_fingerprint(model)
    if not torch.equal(expected["tokens"], found["tokens"]):
        raise VerificationError("the tokenizer gives other ids than when the model was stored")
    pixels = _differences(expected["pixels"], found["pixels"])
    if not (pixels.max() <= _PIXEL_TOLERANCE and pixels.mean() <= _MEAN_PIXEL_TOLERANCE):  # not a number included
        raise VerificationError("preprocessing gives other pixels than when the model was stored")
    exact = model.logit_scale.dtype in (torch.float32, torch.float64)
    allowed = _FLOAT32_TOLERANCE if exact else _HALF_TOLERANCE
    worst = 0.0
    for tower in ("image", "text"):
        name = f"{tower}_embeddings"
        difference = float(_differences(expected[name], found[name]).max())
        if not difference <= allowed:
            raise VerificationError(
                f"the {tower} tower computes other embeddings than when the model was stored",
                f"they differ by {difference:.2g}, {allowed:.2g} is allowed: look at the activation and the weights",
            )
        worst = max(worst, difference)
    return f"embeddings as stored, to {worst:.1g}"


def read_fingerprint(path: Path) -> dict[str, Tensor]:
    """Read a stored fingerprint.

    Raises:
        ModelFolderError: the file is missing, damaged or lacks a part.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as problem:
        raise ModelFolderError(f"{path} cannot be read ({problem})") from None
    if missing := {"tokens", "pixels", "image_embeddings", "text_embeddings"} - stored.keys():
        raise ModelFolderError(f"{path} lacks {', '.join(sorted(missing))}")
    return stored


def fixed_images() -> list[Image]:
    """The images of every fingerprint: color ramps with fine stripes, from whole-number arithmetic alone."""
    import numpy as np
    from PIL import Image

    images = []
    for number, (width, height) in enumerate(_SIZES):
        y, x = np.mgrid[0:height, 0:width]
        red = 255 * x // (width - 1)
        green = 255 * y // (height - 1)
        blue = 255 * ((x // (2 + number) + y // 3) % 2)
        images.append(Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8)))
    return images


def _fixed_pixels(size: int) -> Tensor:
    """float32 [2, 3, size, size]: normalized pixels that no image library had a hand in."""
    import torch

    numbers = torch.arange(2 * 3 * size * size, dtype=torch.int64)
    hashed = (numbers * 2654435761) % 4294967296  # Knuth's multiplicative hash: noise without a random generator
    return (hashed.double() / 4294967296 * 4 - 2).float().reshape(2, 3, size, size)


def _tokens(tokenize: Callable[..., Tensor]) -> Tensor:
    from cloob_cli.data.tokenizer import Tokenizer

    # Also what a cut-down text tower has no place for belongs to what the tokenizer does.
    return tokenize.padded(tokenize.rows(TEXTS)) if isinstance(tokenize, Tokenizer) else tokenize(TEXTS)


def _differences(expected: Tensor, found: Tensor) -> Tensor:
    if expected.shape != found.shape:
        return expected.new_full((1,), float("inf"))
    return (expected.float() - found.float()).abs()
