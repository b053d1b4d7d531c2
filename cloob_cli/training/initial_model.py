"""The model that a run starts from (`model.init`): opened, fitted to the recipe and kept in the run's folder.

RUN/start/ is a whole model folder, written once before the first step. From then on the run needs nothing of the model
that it was made from: a resumption reads RUN/start, the end of the run interpolates from it, and `cloob zoo blend` can
do so later, whatever became of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cloob_cli.checkpoint.folder import (
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    is_model_folder,
    open_model,
    read_config,
    save_model,
    weights_sha256,
)
from cloob_cli.core.model import CloobModel, build, with_weights
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.core.positional_embeddings import fitted_positions
from cloob_cli.data.tokenizer import Tokenizer, clip_tokenizer, train_bpe
from cloob_cli.errors import DataError, RecipeError, UsageError
from cloob_cli.recipe import Recipe
from cloob_cli.training.checkpoints import Progress
from cloob_cli.training.data_split import DataSplit
from cloob_cli.training.new_model import model_config, shown_name
from cloob_cli.training.processes import on_main, send_tensors

FindModel = Callable[[str], Path]

# What may differ from the model that a run starts from; the rest is its architecture.
_CHANGEABLE = {"vision": {"image_size", "adapter"}, "text": {"context_length", "vocab_size", "adapter"}}
_IMAGE_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
_PROJECTIONS = ("visual.proj", "visual.attnpool.c_proj.", "text_projection")
_SAMPLE = 2000  # captions that a tokenizer is tried on


@dataclass(frozen=True)
class InitialModel:
    """The model that a run starts from, with its tokenizer.

    Attributes:
        weights: float32, on the CPU.
        sha256: of the file in the run's folder that holds weights and configuration.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    sha256: str


@dataclass(frozen=True)
class Fitted:
    """A model that was fitted to a recipe, not yet written anywhere."""

    model: CloobModel
    tokenizer: Tokenizer
    card: str


def fit_initial_model(
    recipe: Recipe, folder: Path, data: DataSplit, find_model: FindModel
) -> tuple[Fitted | None, list[str]]:
    """Open `model.init` and fit it to the recipe, in the main process; nothing where `folder` has it already.

    Returns:
        The model, and what is new in it, for the user.

    Raises:
        RecipeError: the recipe asks for another architecture.
        DataError: the tokenizer does not know the captions.
        CloobError: what `find_model` and opening the model raise.
    """
    fitted: list[Fitted] = []

    def fit() -> list[str]:
        assert recipe.model.init is not None
        if is_model_folder(folder):
            return []
        opened = open_model(find_model(recipe.model.init), "cpu", torch.float32)
        tokenizer, new_vocabulary = _tokenizer(recipe, opened, data)
        notices = _check_captions(tokenizer, data)
        config = model_config(recipe, tokenizer.vocab_size, opened.config)
        weights, changed = fitted_weights(opened.state_dict(), opened.config, config, new_vocabulary, recipe.seed)
        card = f"# {recipe.name}: the start\n\nWhat the run started from: {shown_name(recipe.model.init)}.\n"
        fitted.append(Fitted(with_weights(config, weights), tokenizer, card))
        return notices + changed

    notices = on_main(fit)
    return fitted[0] if fitted else None, notices


def keep_initial_model(fitted: Fitted | None, folder: Path, device: torch.device) -> InitialModel:
    """Write the fitted model to `folder`, if there is one, and read what is there; the same in every process."""

    def kept() -> tuple[ModelConfig, bytes, str]:
        if fitted is not None:
            save_model(folder, fitted.model, fitted.tokenizer, card_text=fitted.card)
        return read_config(folder), (folder / TOKENIZER_FILE).read_bytes(), weights_sha256(folder)

    def weights() -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(folder / WEIGHTS_FILE)

    config, tokenizer, sha256 = on_main(kept)
    text = config.text
    return InitialModel(
        config,
        send_tensors(weights, device),
        Tokenizer(tokenizer, config.tokenizer, text.context_length, id_limit=text.vocab_size),
        sha256,
    )


def check_same_start(progress: Progress, sha256: str) -> None:
    """Raise UsageError where a checkpoint's run started from another model than the one that is there now."""
    if progress.step and progress.start not in {None, sha256}:
        raise UsageError(
            f"model.init is not what it was when the run of step {progress.step} started",
            "start anew with another --out, or put the run's folder start back",
        )


def check_architecture(before: ModelConfig, config: ModelConfig) -> None:
    """Raise RecipeError where a recipe changes what the model to start from cannot be changed in."""
    for section, changeable in _CHANGEABLE.items():
        old, new = getattr(before, section), getattr(config, section)
        for key in type(old).model_fields:
            if key not in changeable and getattr(old, key) != getattr(new, key):
                raise RecipeError(
                    f"model.{section}.{key} is {getattr(new, key)!r}, and {getattr(old, key)!r} in the model to start "
                    "from",
                    f"of model.{section} only {' and '.join(sorted(changeable - {'vocab_size'}))} can change",
                )


def fitted_weights(
    weights: Mapping[str, Tensor], before: ModelConfig, config: ModelConfig, new_vocabulary: bool, seed: int
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a model, fitted to a changed configuration; what had to be initialized anew, for the user.

    Raises:
        RecipeError: the changes are of the architecture.
    """
    check_architecture(before, config)
    fresh = build(config, seed).state_dict()
    fitted, notices = {}, []
    for name, new in fresh.items():
        old = weights.get(name)
        if name == "logit_scale" and before.inv_tau != config.inv_tau:
            fitted[name] = new
        elif name == "token_embedding.weight" and new_vocabulary:
            fitted[name] = new
            notices.append(f"the tokenizer is another: its {len(new):,} token embeddings start anew")
        elif old is not None and old.shape == new.shape:
            fitted[name] = old.clone()
        elif old is not None and name in _IMAGE_POSITIONS:
            grid = round((len(new) - 1) ** 0.5)
            fitted[name] = fitted_positions(old, grid, grid).contiguous()
        elif old is not None and name == "positional_embedding":
            kept = min(len(old), len(new))
            fitted[name] = torch.cat([old[:kept], new[kept:]])
            if len(new) > kept:
                notices.append(f"positions {kept} to {len(new) - 1} of a text are new and start anew")
        else:
            fitted[name] = new
            if name.startswith(_PROJECTIONS) and not name.endswith("bias"):
                sizes = f"{config.embed_dim} dimensions instead of {before.embed_dim}"
                notices.append(f"the embedding has {sizes}: {name} starts anew")
    return fitted, notices


def _tokenizer(recipe: Recipe, opened: CloobModel, data: DataSplit) -> tuple[Tokenizer, bool]:
    """The run's tokenizer, and whether it is another than that of the model to start from."""
    assert isinstance(opened.tokenize, Tokenizer)
    assert recipe.model.text is not None
    length, section = recipe.model.text.context_length, recipe.tokenizer
    if section.kind == "bpe":
        return train_bpe(data.captions(), section.vocab_size or 0, length), True
    own = opened.tokenize
    if section.kind == "clip" and (own.config.kind != "clip" or own.vocab_size != opened.config.text.vocab_size):
        return clip_tokenizer(length), True
    return Tokenizer(own.to_json().encode(), own.config, length), False


def _check_captions(tokenizer: Tokenizer, data: DataSplit) -> list[str]:
    """A notice where many captions are cut.

    Raises:
        DataError: most captions have tokens that the vocabulary does not know.
    """
    captions = data.some_captions(_SAMPLE)
    if not captions:
        return []
    unknown = sum(map(tokenizer.has_unknown, captions))
    if 2 * unknown > len(captions):
        raise DataError(
            "the tokenizer of the model to start from does not know the script or the words of "
            f"{unknown / len(captions):.0%} of the captions",
            "learn one from your captions: --set tokenizer.kind=bpe --set tokenizer.vocab_size=8192",
        )
    cut = sum(length > tokenizer.context_length for length in tokenizer.lengths(captions))
    share = cut / len(captions)
    if share < 0.1:
        return []
    return [f"{share:.0%} of the captions are longer than {tokenizer.context_length} tokens and are cut"]
