"""What a run is made of, put together from its recipe: device, data, tokenizer, model, optimizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from cloob_cli import __version__
from cloob_cli.core.config import ModelConfig
from cloob_cli.core.device import pick_device
from cloob_cli.core.model import CloobModel, build
from cloob_cli.data.order import hold_out
from cloob_cli.data.pairs import PairSource, open_pairs
from cloob_cli.data.text import Tokenizer, clip_tokenizer, train_bpe
from cloob_cli.errors import DataError, DeviceError, ImageError
from cloob_cli.files import replacing
from cloob_cli.recipe import DataSection, ModelSection, Recipe, TokenizerSection
from cloob_cli.training.precision import Precision
from cloob_cli.training.processes import on_main
from cloob_cli.training.validation import HeldOut

# Rank 0 validates and saves while the others wait for it; the usual ten minutes can be too short for that.
_PATIENCE = timedelta(hours=4)
_OWN = {"data.workers", "data.in_memory"}  # recipe keys that each process may have for itself


def start_processes(device: torch.device) -> None:
    """Under a launcher, join the other processes of the run; they can then talk (`processes`)."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may have other settings
    if device.type == "cuda" and device.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)


def start_accelerator(device: torch.device, precision: Precision) -> Accelerator:
    """Accelerate on `device`, or under `accelerate launch` on this process's own.

    Raises:
        DeviceError: the device does not train in this precision.
    """
    try:
        return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device.type == "cpu")
    except ValueError as problem:
        text = f"{device.type} does not train in {precision}: {problem}"
        raise DeviceError(text, 'set train.precision = "auto"') from None


def local_processes() -> int:
    """How many processes of this run are on this machine, as the launcher says."""
    names = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
    told = next((os.environ[name] for name in names if os.environ.get(name, "").isdecimal()), None)
    return int(told) if told else PartialState().num_processes


def choose_device(name: str | None) -> torch.device:
    """The device that `name` means; `accelerate launch --cpu` is heeded where none is named."""
    if name is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}:
        return torch.device("cpu")
    return pick_device(name)


@dataclass(frozen=True)
class PairSplit:
    """The pairs of a run: a source with the indices to train on, and those that are held out, if any."""

    source: PairSource
    indices: np.ndarray  # int64
    held_out: HeldOut | None

    @property
    def unusable(self) -> list[tuple[str, str]]:
        """(name, reason) of what lies with the pairs of either source and is not among them."""
        other = self.held_out.source if self.held_out else self.source
        return self.source.unusable + (other.unusable if other is not self.source else [])


def open_data(section: DataSection, retrieval_pairs: int) -> PairSplit:
    """Open the sources and split off at most `retrieval_pairs` held-out pairs for validation.

    Raises:
        DataError: a source is missing, empty or has other keys.
    """
    source = open_pairs(section)
    if section.validation is not None:
        other = open_pairs(section, section.validation)
        held_out = _spread(np.arange(len(other)), retrieval_pairs)
        return PairSplit(source, np.arange(len(source)), HeldOut(other, held_out))
    # The same pairs are held out whatever the recipe's seed, so that runs can be compared.
    indices, held_out = hold_out(len(source), section.validation_fraction)
    if section.validation_fraction and len(held_out) < 2:
        raise DataError(f"data.validation_fraction holds out {len(held_out)} of {len(source)} pairs, which is too few")
    return PairSplit(source, indices, HeldOut(source, _spread(held_out, retrieval_pairs)) if len(held_out) else None)


def _spread(indices: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the indices, evenly spread."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]


def make_tokenizer(section: TokenizerSection, context_length: int, data: PairSplit, path: Path) -> Tokenizer:
    """The tokenizer at `path` if the run has one already; else CLIP's, or one trained on the captions; stored there.

    The main process makes it and sends it to the others.
    """

    def made() -> bytes:
        if not path.exists():
            if section.kind == "clip":
                tokenizer = clip_tokenizer(context_length)
            else:
                tokenizer = train_bpe(_captions(data), section.vocab_size or 0, context_length)
            with replacing(path) as temporary:
                tokenizer.save(temporary)
        return path.read_bytes()

    return Tokenizer(on_main(made), section.config(), context_length)


def facts(recipe: Recipe, data: PairSplit, data_record: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every process of a run, by names for people."""
    keys = {f"the recipe's {key}": value for key, value in _flat(recipe.model_dump(mode="json")) if key not in _OWN}
    return {
        "the version of cloob": __version__,
        **keys,
        "the number of training pairs": len(data.indices),
        "the number of held-out pairs": len(data.held_out) if data.held_out else 0,
        "the data's fingerprint": hashlib.sha256(json.dumps(data_record).encode()).hexdigest()[:12],
    }


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _captions(data: PairSplit) -> Iterator[str]:
    for index in data.indices.tolist():
        try:
            yield from data.source.captions(index)
        except ImageError:
            continue  # its turn as a skipped pair comes when it is to be trained on


def model_config(recipe: Recipe, vocab_size: int) -> ModelConfig:
    """The configuration of the model that `recipe` trains."""
    section: ModelSection = recipe.model
    if section.embed_dim is None or section.vision is None or section.text is None:
        raise AssertionError("a model section is complete once it is validated")
    return ModelConfig(
        name=recipe.name,
        embed_dim=section.embed_dim,
        vision=section.vision,
        text=section.text.model_copy(update={"vocab_size": vocab_size}),
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


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it is stored with the model: folders by their last name only, they are the trainer's own."""
    record = recipe.model_dump(mode="json", exclude_none=True)

    def short(value: str | list[str]) -> str | list[str]:
        return [Path(one).name for one in value] if isinstance(value, list) else Path(value).name

    for section, key in (("data", "train"), ("data", "validation"), ("validation", "zero_shot")):
        if key in record[section]:
            record[section][key] = short(record[section][key])
    return record
