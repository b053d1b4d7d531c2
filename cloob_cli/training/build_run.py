"""The parts of a run, built from its recipe: device, data, tokenizer, model, batches and optimizer; its checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cloob_cli import launch
from cloob_cli.core.device import pick_device
from cloob_cli.core.model import CloobModel
from cloob_cli.data.loader import PairLoader, check_enough
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.recipe import Recipe
from cloob_cli.training import processes
from cloob_cli.training.checkpoints import Progress, load_checkpoint
from cloob_cli.training.collapse_watch import CollapseWatch
from cloob_cli.training.data_split import DataSplit, compare_parts, open_data
from cloob_cli.training.ema import EMA
from cloob_cli.training.events import Event, Notice, Preparing
from cloob_cli.training.frozen_features import kept_features
from cloob_cli.training.hopfield_metrics import REPORTS_BETWEEN, MechanismWatch
from cloob_cli.training.initial_model import FindModel, check_same_start, fit_initial_model, keep_initial_model
from cloob_cli.training.interrupt import StopRequest
from cloob_cli.training.new_model import (
    build_model,
    check_frozen_parts,
    keep_tokenizer,
    make_tokenizer,
    model_config,
    shown_name,
)
from cloob_cli.training.run_folder import RunFolder, RunLock, Start, claim, find_start
from cloob_cli.training.schedules import warmup_length
from cloob_cli.training.step import TrainingStep
from cloob_cli.training.teacher import check_teacher, open_teacher
from cloob_cli.training.validation import Validator, open_sets
from cloob_cli.version import __version__

# Keys that bring something to score.
VALIDATION_KEYS = "data.validation, data.validation_fraction, validation.datasets or validation.zero_shot"

_LOCAL_KEYS = {"data.workers", "data.in_memory"}  # recipe keys that each process may have for itself


@dataclass
class Run:
    """One process's part of a training run, ready to be trained.

    All processes go through the same steps and take part in every exchange; the main one alone reads and writes the
    run's folder, and validates.

    Attributes:
        stop: asked to stop after a step, by a signal.
        lock: of the folder; `close` releases it.
        data_parts: what a checkpoint keeps of the data.
        start_sha256: what it keeps of the model that the run started from.
        steps: of the whole run.
        step: steps that are done.
        checkpoint: the newest one; None: there is none yet.
        skipped: names of the pairs that were skipped so far.
        last_loss: the one reported last; not a number before the first.
        validation_error: why the last validation gave no scores; None where it did.
    """

    recipe: Recipe
    folder: RunFolder
    lock: RunLock
    stop: StopRequest
    accelerator: Accelerator
    data: DataSplit
    data_parts: dict[str, Any]
    start_sha256: str | None
    tokenizer: Tokenizer
    model: CloobModel
    loader: PairLoader
    train_step: TrainingStep
    validator: Validator
    collapse: CollapseWatch
    mechanism: MechanismWatch
    steps: int
    # The rest changes while the run is trained.
    progress_at_start: Progress
    checkpoint: Path | None
    skipped: set[str]
    last_loss: float
    step: int = field(init=False)
    validation_error: Exception | None = field(default=None, init=False)
    started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.step = self.progress_at_start.step

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def ema(self) -> EMA | None:
        return self.train_step.ema

    @property
    def progress(self) -> Progress:
        precision = self.progress_at_start.precision
        return Progress(self.step, self.seconds, precision, self.data_parts, self.start_sha256)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self.progress_at_start.seconds + time.monotonic() - self.started

    def close(self) -> None:
        """Let others have the run's folder."""
        self.lock.release()


def build_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    stop: StopRequest | None = None,
    find_model: FindModel = Path,
) -> Generator[Event, None, Run | None]:
    """Build the run of `recipe` in `folder`; `run = yield from build_run(...)` in a generator, or `built(...)`.

    Under a launcher every process calls this. The caller closes the run.

    Args:
        device: see `core.device.pick_device`.
        resume: go on from the newest valid checkpoint in `folder`, or start where there is none.
        stop: a request to stop raises Interrupted here. None: it cannot be interrupted in order.
        find_model: the folder of a model that the recipe names; called in the main process.

    Yields:
        Preparing and Notice; where the run is done already, its Finished alone.

    Returns:
        The run; None where it is done already.

    Raises:
        see `loop.train_recipe`.
    """
    stop, lock, run_folder = stop or StopRequest(), RunLock(), RunFolder(Path(folder))
    chosen = choose_device(device)
    processes.start_processes(chosen)
    try:
        start = processes.on_main(lambda: find_start(run_folder, recipe, chosen, resume, lock))
        if start.finished:
            yield start.finished
            lock.release()
            return None
        accelerator = processes.start_accelerator(chosen, start.progress.precision)
        return (yield from _build(recipe, run_folder, lock, stop, start, accelerator, resume, find_model))
    except BaseException:
        lock.release()
        raise


def built(building: Generator[Event, None, Run | None]) -> Run | None:
    """The result of `build_run`, without its events."""
    try:
        while True:
            next(building)
    except StopIteration as end:
        run: Run | None = end.value
    return run


def _build(
    recipe: Recipe,
    folder: RunFolder,
    lock: RunLock,
    stop: StopRequest,
    start: Start,
    accelerator: Accelerator,
    resume: bool,
    find_model: FindModel,
) -> Generator[Event, None, Run]:
    yield from map(Notice, start.notices)
    yield Preparing("opening the data")
    data = open_data(recipe.data, recipe.validation.retrieval_pairs)
    check_enough(len(data.indices), recipe.train.batch_size)
    sets = open_sets(recipe.validation)
    data_parts = data.parts()
    if start.checkpoint:
        yield from map(Notice, compare_parts(start.progress.data, data_parts, start.progress.step))
    stop.check()
    processes.agree(facts(recipe, data, data_parts))
    check_frozen_parts(recipe)
    processes.on_main(lambda: check_teacher(recipe, folder.features, find_model))
    fitted = None
    if recipe.model.init is not None:
        yield Preparing(f"opening {shown_name(recipe.model.init)}")
        fitted, notices = fit_initial_model(recipe, folder.start, data, find_model)
        yield from map(Notice, notices)
    notice = processes.on_main(lambda: claim(folder, recipe, resume, lock))
    yield from [Notice(notice)] if notice else []

    if recipe.tokenizer.kind == "bpe" and recipe.model.init is None and not folder.tokenizer.exists():
        yield Preparing("learning a vocabulary from the captions")
    initial = None
    if recipe.model.init is not None:
        initial = keep_initial_model(fitted, folder.start, accelerator.device)
        check_same_start(start.progress, initial.sha256)
        tokenizer, config = initial.tokenizer, initial.config
        if accelerator.is_main_process:
            keep_tokenizer(tokenizer, folder.tokenizer)
    else:
        length = recipe.model.text.context_length if recipe.model.text else 0
        tokenizer = make_tokenizer(recipe.tokenizer, length, data, folder.tokenizer)
        config = model_config(recipe, tokenizer.vocab_size)
    stop.check()

    model = build_model(recipe, config, accelerator.device, initial.weights if initial else None)
    preprocess = Preprocess(config.vision.image_size, config.preprocess)
    validator = Validator(data.held_out, sets, preprocess, tokenizer)
    if recipe.validation.every and not validator:
        yield Notice(f"validation.every has nothing to validate on: set {VALIDATION_KEYS}")

    features = yield from kept_features(
        recipe,
        folder.features,
        model,
        data,
        data_parts,
        tokenizer,
        preprocess,
        accelerator,
        start.progress.precision,
        stop,
    )
    teacher = yield from open_teacher(
        recipe,
        folder.features,
        model,
        data,
        data_parts,
        tokenizer,
        accelerator,
        start.progress,
        find_model,
        stop,
    )
    yield Preparing("reading captions" if "image" in features else "reading images")
    loader = PairLoader(
        data.source,
        data.indices,
        tokenizer,
        preprocess,
        recipe.augment,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        workers=recipe.data.workers,
        in_memory=recipe.data.in_memory,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        local_processes=launch.local_count(),
        device=accelerator.device,
        captions_per_image=recipe.train.captions_per_image,
        text=config.text,
        image_features=features.get("image"),
        text_features=features.get("text"),
    )
    stop.check()
    steps = recipe.train.steps or max(1, round((recipe.train.epochs or 0) * loader.batches_per_epoch))
    train_step = TrainingStep(
        accelerator,
        model,
        recipe.objective,
        recipe.optimizer,
        recipe.train,
        precision=start.progress.precision,
        steps=steps,
        local_batch_size=loader.local_batch_size,
        seed=recipe.seed,
        teacher=teacher,
    )
    warm_ups = warmup_length(recipe.optimizer, steps), round(recipe.objective.hopfield_warmup * steps)
    if start.checkpoint:
        optimizer, scaler = train_step.optimizer, accelerator.scaler
        load_checkpoint(
            start.checkpoint, model, optimizer, scaler, train_step.ema, accelerator.device, train_step.projection
        )
    return Run(
        recipe=recipe,
        folder=folder,
        lock=lock,
        stop=stop,
        accelerator=accelerator,
        data=data,
        data_parts=data_parts,
        start_sha256=initial.sha256 if initial else None,
        tokenizer=tokenizer,
        model=model,
        loader=loader,
        train_step=train_step,
        validator=validator,
        collapse=CollapseWatch(recipe.objective, recipe.train.batch_size, max(warm_ups)),
        mechanism=MechanismWatch(recipe.objective, REPORTS_BETWEEN * recipe.train.log_every, max(warm_ups)),
        steps=steps,
        progress_at_start=start.progress,
        checkpoint=start.checkpoint,
        skipped=set(start.skipped),
        last_loss=start.last_loss,
    )


def choose_device(name: str | None) -> torch.device:
    """The device that `name` means; `accelerate launch --cpu` is heeded where none is named."""
    if name is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}:
        return torch.device("cpu")
    return pick_device(name)


def facts(recipe: Recipe, data: DataSplit, data_parts: dict[str, Any]) -> dict[str, Any]:
    """The facts that must be the same in every process of a run, by names for people."""
    keys = _flat(recipe.model_dump(mode="json"))
    return {
        "the version of cloob": __version__,
        **{f"the recipe's {key}": value for key, value in keys if key not in _LOCAL_KEYS},
        "the number of training pairs": len(data.indices),
        "the number of held-out pairs": len(data.held_out) if data.held_out else 0,
        "the data's fingerprint": hashlib.sha256(json.dumps(data_parts).encode()).hexdigest()[:12],
    }


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
