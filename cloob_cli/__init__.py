"""cloob: train, keep and use CLOOB models (contrastive image-text models with Hopfield retrieval)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloob_cli.version import __version__

if TYPE_CHECKING:
    import torch

    from cloob_cli.core.model import CloobModel

__all__ = ["__version__", "load"]


def load(name: str, device: str | None = None, dtype: torch.dtype | str | None = None) -> CloobModel:
    """Open a model for inference.

    Args:
        name: a zoo name, a model folder (in our form, open_clip's, or that of transformers' CLIPModel), or
            hf://ORG/REPO[@REVISION].
        device: like "cpu", "cuda:0", "mps"; None picks the best one here.
        dtype: of the weights: a torch.dtype or "fp32", "fp16", "bf16"; None picks by device.

    Returns:
        The model, in evaluation mode, with `encode_image`, `encode_text`, `preprocess`, `tokenize` and `config`.

    Raises:
        UnknownModelError: no model of that name.
        ModelFolderError: the folder is not a valid model folder.
        DeviceError: no such device.
    """
    from cloob_cli.registry.resolve import load as load_model

    return load_model(name, device=device, dtype=dtype)
