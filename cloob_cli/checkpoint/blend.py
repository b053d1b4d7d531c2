"""A model folder whose weights lie between those of two others."""

from __future__ import annotations

from pathlib import Path

from cloob_cli.errors import UsageError

_ALIKE = ("embed_dim", "vision", "text", "preprocess", "tokenizer")


def blend_models(first: Path, second: Path, alpha: float, output: Path, names: tuple[str, str]) -> None:
    """Write (1 - alpha) * first + alpha * second to the model folder `output`.

    Name, templates and `scale_hopfield` are the second's; the weights are stored as float32.

    Args:
        alpha: in [0, 1].
        names: what the models are called in `source` and in messages.

    Raises:
        UsageError: the models differ in architecture, preprocessing or tokenizer, or alpha is out of range.
        ModelFolderError: one of them cannot be opened.
    """
    import torch

    from cloob_cli.checkpoint.card import model_card
    from cloob_cli.checkpoint.folder import open_model, save_model
    from cloob_cli.core.blending import blended
    from cloob_cli.data.tokenizer import Tokenizer

    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha:g}, not between 0 (all of {names[0]}) and 1 (all of {names[1]})")
    one, other = (open_model(folder, "cpu", torch.float32) for folder in (first, second))
    for key in _ALIKE:
        mine, theirs = getattr(one.config, key), getattr(other.config, key)
        if mine != theirs:
            fields = getattr(type(mine), "model_fields", ())
            inner = next((f".{name}" for name in fields if getattr(mine, name) != getattr(theirs, name)), "")
            raise _cannot(names, f"{key}{inner}")
    assert isinstance(one.tokenize, Tokenizer)
    assert isinstance(other.tokenize, Tokenizer)
    if one.tokenize.to_json() != other.tokenize.to_json():
        raise _cannot(names, "their vocabularies")
    other.load_state_dict(blended(one.state_dict(), other.state_dict(), alpha))
    other.config = other.config.model_copy(
        update={
            "inv_tau": float(other.inv_tau),
            "source": {"blend": list(names), "alpha": alpha},
            "recipe": None,
            "metrics": {},
        }
    )
    summary = f"A blend of {names[0]} ({1 - alpha:g}) and {names[1]} ({alpha:g})."
    save_model(output, other, other.tokenize, card_text=model_card(other.config, summary=summary))


def _cannot(names: tuple[str, str], what: str) -> UsageError:
    return UsageError(
        f"{names[0]} and {names[1]} differ in {what}", "models that are blended come from one another, by fine-tuning"
    )
