"""The model of a run: its tokenizer, its configuration and its weights before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cloob_cli.atomic_files import replacing
from cloob_cli.core.loss import WITH_RETRIEVAL
from cloob_cli.core.model import CloobModel, build, with_weights
from cloob_cli.core.model_config import CLIP_VOCAB_SIZE, ModelConfig, TextConfig
from cloob_cli.core.towers import freeze
from cloob_cli.data.tokenizer import Tokenizer, clip_tokenizer, train_bpe
from cloob_cli.errors import RecipeError
from cloob_cli.recipe import Recipe, TokenizerSection
from cloob_cli.training.data_split import DataSplit
from cloob_cli.training.processes import on_main


def make_tokenizer(section: TokenizerSection, context_length: int, data: DataSplit, path: Path) -> Tokenizer:
    """The tokenizer at `path` if the run has one already; else CLIP's, or one trained on the captions; stored there.

    The main process makes it and sends it to the others.
    """

    def made() -> bytes:
        if not path.exists():
            if section.kind == "clip":
                tokenizer = clip_tokenizer(context_length)
            else:
                tokenizer = train_bpe(data.captions(), section.vocab_size or 0, context_length)
            keep_tokenizer(tokenizer, path)
        return path.read_bytes()

    return Tokenizer(on_main(made), section.config(), context_length)


def keep_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a `tokenizer.json`."""
    with replacing(path) as temporary:
        tokenizer.save(temporary)


def model_config(recipe: Recipe, vocab_size: int, init: ModelConfig | None = None) -> ModelConfig:
    """The configuration of the model that `recipe` trains.

    Args:
        vocab_size: the tokenizer's.
        init: of the model that it starts from.

    Raises:
        RecipeError: `model.text.vocab_size` is given and another number; or `model.init` was not filled in.
    """
    section = recipe.model
    if section.embed_dim is None or section.vision is None or section.text is None:
        raise RecipeError(f"the recipe lacks the configuration of {section.init}", "give load_recipe its `init`")
    tokenizer = init.tokenizer if init and recipe.tokenizer.kind == "init" else None
    if init and tokenizer:
        vocab_size = init.text.vocab_size  # a text tower may have more or fewer entries than its tokenizer
    if section.text.vocab_size not in {None, vocab_size}:
        other = "the model to start from" if tokenizer else "the tokenizer"
        raise RecipeError(
            f"model.text.vocab_size is {section.text.vocab_size}, {other} has {vocab_size} entries",
            "leave the key out",
        )
    return ModelConfig(
        name=recipe.name,
        embed_dim=section.embed_dim,
        vision=section.vision,
        text=TextConfig(**section.text.model_dump() | {"vocab_size": vocab_size}),
        preprocess=section.preprocess,
        tokenizer=tokenizer or recipe.tokenizer.config(),
        inv_tau=recipe.objective.inv_tau,
        scale_hopfield=recipe.objective.scale_hopfield if recipe.objective.name in WITH_RETRIEVAL else None,
        templates=section.templates,
        source={"init": shown_name(section.init)} if section.init else {},
    )


def check_frozen_parts(recipe: Recipe) -> None:
    """Raise RecipeError where `train.freeze` names parts that the model does not have, or all of it."""
    if recipe.train.freeze and recipe.model.text is not None:
        size = recipe.model.text.vocab_size or recipe.tokenizer.vocab_size or CLIP_VOCAB_SIZE
        with torch.device("meta"):
            config = model_config(recipe.model_copy(update={"tokenizer": TokenizerSection()}), size)
            freeze(CloobModel(config), recipe.train.freeze)


def shown_name(model: str) -> str:
    """The name of a model for others to read: of a folder on this disk only the last part."""
    return Path(model).name if Path(model).is_absolute() else model


def build_model(
    recipe: Recipe, config: ModelConfig, device: torch.device, weights: Mapping[str, Tensor] | None = None
) -> CloobModel:
    """The model with these weights, or a freshly initialized one, ready to be trained on `device`.

    Raises:
        RecipeError: `train.freeze` names parts that it does not have, or all of it.
    """
    model = (build(config, recipe.seed) if weights is None else with_weights(config, weights)).to(device)
    if config.vision.kind == "resnet" or config.vision.stem == "conv":
        model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.logit_scale.requires_grad_(recipe.objective.learn_inv_tau)
    freeze(model, recipe.train.freeze)
    if recipe.train.batch_norm == "kept" or (recipe.train.batch_norm == "auto" and recipe.model.init is not None):
        model.stay_in_evaluation(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    if recipe.train.gradient_checkpointing:
        model.checkpoint_activations()
    if recipe.train.compile:
        # A graph for each size of images, since positions depend on it.
        model.visual.compile(dynamic=False if len(recipe.train.image_sizes) > 1 else None)
        model.transformer.compile()
        model.cuts_tokens = False  # the loader does, to few lengths
    model.train()
    return model
