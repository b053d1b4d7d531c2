"""The new model of a run: its tokenizer, its configuration and its initial weights."""

from __future__ import annotations

from pathlib import Path

import torch

from cloob_cli.core.config import ModelConfig, TextConfig
from cloob_cli.core.model import CloobModel, build
from cloob_cli.data.text import Tokenizer, clip_tokenizer, train_bpe
from cloob_cli.errors import RecipeError
from cloob_cli.files import replacing
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
            with replacing(path) as temporary:
                tokenizer.save(temporary)
        return path.read_bytes()

    return Tokenizer(on_main(made), section.config(), context_length)


def model_config(recipe: Recipe, vocab_size: int) -> ModelConfig:
    """The configuration of the model that `recipe` trains.

    Args:
        vocab_size: the tokenizer's.

    Raises:
        RecipeError: `model.text.vocab_size` is given and another number.
    """
    section = recipe.model
    if section.embed_dim is None or section.vision is None or section.text is None:
        raise AssertionError("a model section is complete once it is validated")
    if section.text.vocab_size not in {None, vocab_size}:
        raise RecipeError(
            f"model.text.vocab_size is {section.text.vocab_size}, the tokenizer has {vocab_size} entries",
            "leave the key out",
        )
    return ModelConfig(
        name=recipe.name,
        embed_dim=section.embed_dim,
        vision=section.vision,
        text=TextConfig(**section.text.model_dump() | {"vocab_size": vocab_size}),
        preprocess=section.preprocess,
        tokenizer=recipe.tokenizer.config(),
        inv_tau=recipe.objective.inv_tau,
        scale_hopfield=recipe.objective.scale_hopfield if recipe.objective.name == "cloob" else None,
        templates=section.templates,
    )


def build_model(recipe: Recipe, config: ModelConfig, device: torch.device) -> CloobModel:
    """A freshly initialized model, ready to be trained on `device`."""
    model = build(config, recipe.seed).to(device)
    if config.vision.kind == "resnet" or config.vision.stem == "conv":
        model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.logit_scale.requires_grad_(recipe.objective.learn_inv_tau)
    if recipe.train.gradient_checkpointing:
        model.checkpoint_activations()
    if recipe.train.compile:
        # A graph for each size of images, since positions depend on it.
        model.visual.compile(dynamic=False if len(recipe.train.image_sizes) > 1 else None)
        model.transformer.compile()
        model.cuts_tokens = False  # the loader does, to few lengths
    return model.train()
