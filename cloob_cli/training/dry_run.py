"""The dry run: everything that a run would start with, found out without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cloob_cli.core.model import CloobModel
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.core.towers import freeze
from cloob_cli.data.loader import check_enough
from cloob_cli.data.tokenizer import clip_tokenizer
from cloob_cli.recipe import Recipe
from cloob_cli.training.build_run import choose_device
from cloob_cli.training.data_split import open_data
from cloob_cli.training.initial_model import FindModel, check_architecture
from cloob_cli.training.new_model import check_frozen_parts, model_config
from cloob_cli.training.precision import check_precision
from cloob_cli.training.run_folder import check_writable
from cloob_cli.training.teacher import check_teacher
from cloob_cli.training.validation import open_sets


def dry_run(
    recipe: Recipe,
    folder: Path,
    device: str | None = None,
    init: ModelConfig | None = None,
    find_model: FindModel = Path,
) -> dict[str, Any]:
    """The device, pairs, held-out pairs, steps an epoch and parameters of a run in `folder`, without starting it.

    Args:
        init: the configuration of `model.init`, where the recipe has one.
        find_model: the folder of a model that the recipe names.

    Raises:
        InputError: what would keep the run from starting: data or data sets that are missing, fewer pairs than a
            batch, a folder that cannot be made.
        DeviceError: no such device, or one that does not train in the recipe's precision.
    """
    chosen = choose_device(device)
    check_precision(recipe.train.precision, chosen)
    check_writable(folder)
    data = open_data(recipe.data, recipe.validation.retrieval_pairs)
    check_enough(len(data.indices), recipe.train.batch_size)
    check_frozen_parts(recipe)
    check_teacher(recipe, folder / "features", find_model)
    open_sets(recipe.validation)
    vocab_size = recipe.tokenizer.vocab_size or clip_tokenizer().vocab_size
    with torch.device("meta"):
        config = model_config(recipe, vocab_size, init)
        model = CloobModel(config)
    if init is not None:
        check_architecture(init, config)
    freeze(model, recipe.train.freeze)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "device": str(chosen),
        "training pairs": len(data.indices),
        "held-out pairs": len(data.held_out) if data.held_out else 0,
        "steps an epoch": len(data.indices) // recipe.train.batch_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **({"trained parameters": trained} if recipe.train.freeze else {}),
    }
