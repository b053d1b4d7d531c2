"""The training loop: from a recipe to a model folder, as a stream of events."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean

import torch
from accelerate.utils import gather_object

from cloob_cli.core.device import PRECISIONS
from cloob_cli.core.loss_forms.choice import choose_implementation
from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.images import Preprocess
from cloob_cli.data.loader import PairBatch, PairLoader, check_enough
from cloob_cli.errors import (
    Interrupted,
    MissingExtraError,
    NonFiniteEmbeddingsError,
    NonFiniteLossError,
    TrainingError,
    one_line,
)
from cloob_cli.recipe import Recipe
from cloob_cli.registry.store import save_model
from cloob_cli.training import curriculum, data_record, processes, setup, state
from cloob_cli.training.card import model_card
from cloob_cli.training.collapse import CollapseWatch
from cloob_cli.training.disk import naming_a_full_disk
from cloob_cli.training.events import (
    CheckpointSaved,
    Event,
    Finished,
    Notice,
    PairSkipped,
    Preparing,
    Started,
    StepDone,
    Validated,
)
from cloob_cli.training.interrupt import StopRequest, stop_on_signals
from cloob_cli.training.lock import RunLock
from cloob_cli.training.optim import warmup_length
from cloob_cli.training.start import claim, find_start
from cloob_cli.training.state import Progress, RunFolder
from cloob_cli.training.step import TrainingStep
from cloob_cli.training.telemetry import MetricsFile, Window, draw_loss_curve, memory_gib
from cloob_cli.training.validation import Validator


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    acknowledge: Callable[[str], None] | None = None,
) -> Iterator[Event]:
    """Train what `recipe` says in the run folder `folder`, yielding events as they happen.

    Under `accelerate launch` every process calls this; events come out on the main one only.

    Args:
        device: see `core.device.pick_device`.
        resume: go on from the newest good checkpoint in `folder`, or start where there is none. A run that is done is
            left as it is; its `Finished` is the only event.
        acknowledge: told at once, from another thread, that a signal has arrived and what happens now.

    Raises:
        UsageError: `folder` holds something else, a run that is not to be resumed or has another recipe, or one that
            another process works on.
        DataError: the data cannot be opened or holds less than a batch.
        DeviceError: no such device.
        NonFiniteLossError: the loss or the gradient is no longer a number.
        TrainingError: the processes of the run do not mean the same run, or the final validation failed.
        DiskSpaceError: no room for a checkpoint or the model.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    main = os.environ.get("RANK", "0") == "0"
    with stop_on_signals(acknowledge if main else None) as stop, closing(Run(recipe, folder, device, resume)) as run:
        for event in run.events(stop):
            if run.is_main:
                yield event


class Run:
    """One process's part of a training run.

    All processes go through the same steps and take part in every exchange; the main one alone reads and writes the
    run's folder, and validates.
    """

    data: setup.PairSplit
    loader: PairLoader
    validator: Validator
    train_step: TrainingStep

    def __init__(self, recipe: Recipe, folder: Path, device: str | None, resume: bool) -> None:
        self.recipe, self.folder, self.resume, self.lock = recipe, RunFolder(Path(folder)), resume, RunLock()
        chosen = setup.choose_device(device)
        setup.start_processes(chosen)
        self.is_main = processes.is_main()
        self.start = processes.on_main(lambda: find_start(self.folder, recipe, chosen, resume, self.lock))
        self.saved, self.step = self.start.checkpoint, self.start.progress.step
        self.precision = self.start.progress.precision
        self.accelerator = setup.start_accelerator(chosen, self.precision)
        self.device = self.accelerator.device
        self.skipped = set(self.start.skipped)
        self.last_loss = self.start.last_loss
        self.unscored: Exception | None = None  # why the last validation gave no scores

    def close(self) -> None:
        """Let others have the run's folder."""
        self.lock.release()

    def events(self, stop: StopRequest) -> Iterator[Event]:
        """Everything, or nothing where the run is done already."""
        if self.start.finished:
            yield self.start.finished
        else:
            yield from self.prepare(stop)
            yield from self.train(stop)

    # --- before the first step ------------------------------------------------------------------------------------

    def prepare(self, stop: StopRequest) -> Iterator[Event]:
        """Open the data, make the tokenizer and the model, and load the checkpoint if there is one."""
        recipe = self.recipe
        yield from map(Notice, self.start.notices)
        yield Preparing("opening the data")
        self.data = setup.open_data(recipe.data, recipe.validation.retrieval_pairs)
        check_enough(len(self.data.indices), recipe.train.batch_size)
        sets = [open_classification_set(Path(name)) for name in recipe.validation.zero_shot]
        self.data_record = data_record.record(self.data)
        if self.saved:
            yield from map(Notice, data_record.compare(self.start.progress.data, self.data_record, self.step))
        stop.check()
        processes.agree(setup.facts(recipe, self.data, self.data_record))
        notice = processes.on_main(lambda: claim(self.folder, recipe, self.resume, self.lock))
        yield from [Notice(notice)] if notice else []
        if recipe.tokenizer.kind == "bpe" and not self.folder.tokenizer.exists():
            yield Preparing("learning a vocabulary from the captions")
        length = recipe.model.text.context_length if recipe.model.text else 0
        self.tokenizer = setup.make_tokenizer(recipe.tokenizer, length, self.data, self.folder.tokenizer)
        stop.check()
        config = setup.model_config(recipe, self.tokenizer.vocab_size)
        self.model = setup.build_model(recipe, config, self.device)
        preprocess = Preprocess(config.vision.image_size, config.preprocess)
        self.validator = Validator(self.data.held_out, sets, preprocess, self.tokenizer)
        if recipe.validation.every and not self.validator:
            keys = "data.validation, data.validation_fraction or validation.zero_shot"
            yield Notice(f"validation.every has nothing to validate on: set {keys}")
        yield Preparing("reading images")
        self.loader = self._open_loader(preprocess)
        stop.check()
        self.steps = recipe.train.steps or max(1, round((recipe.train.epochs or 0) * self.loader.batches_per_epoch))
        self.train_step = TrainingStep(
            self.accelerator,
            self.model,
            recipe.objective,
            recipe.optimizer,
            recipe.train,
            precision=self.precision,
            steps=self.steps,
            share=self.loader.share,
            seed=recipe.seed,
        )
        self.average = self.train_step.average
        warm_ups = warmup_length(recipe.optimizer, self.steps), round(recipe.objective.hopfield_warmup * self.steps)
        self.collapse = CollapseWatch(recipe.objective, recipe.train.batch_size, max(warm_ups))
        if self.saved:
            optimizer, scaler = self.train_step.optimizer, self.accelerator.scaler
            state.load_checkpoint(self.saved, self.model, optimizer, scaler, self.average, self.device)

    def _open_loader(self, preprocess: Preprocess) -> PairLoader:
        return PairLoader(
            self.data.source,
            self.data.indices,
            self.tokenizer,
            preprocess,
            self.recipe.augment,
            batch_size=self.recipe.train.batch_size,
            seed=self.recipe.seed,
            workers=self.recipe.data.workers,
            in_memory=self.recipe.data.in_memory,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            local_processes=setup.local_processes(),
            device=self.device,
            captions_per_image=self.recipe.train.captions_per_image,
            text=self.model.config.text,
        )

    # --- the steps ------------------------------------------------------------------------------------------------

    def train(self, stop: StopRequest) -> Iterator[Event]:
        """Train to the end and write the model."""
        self.started = time.monotonic()
        yield self._started()
        yield from self._report_skips(self.data.unusable if self.is_main else [])
        metrics_file = MetricsFile(self.folder.metrics, self.step) if self.is_main else None
        try:
            with naming_a_full_disk(self.folder.path, self._how_to_go_on):
                for event in chain(self._steps(stop), self._finish(stop)):
                    if metrics_file and isinstance(event, StepDone | Validated):
                        metrics_file.add(event)
                    yield event
        finally:
            if metrics_file:
                metrics_file.close()

    def _how_to_go_on(self) -> str:
        saved = f"the newest checkpoint is {self.saved}" if self.saved else "no checkpoint was saved"
        return f"{saved}; make room, then give the same command with --resume"

    def _steps(self, stop: StopRequest) -> Iterator[Event]:
        section, window = self.recipe.train, Window()
        skipped: list[tuple[str, str]] = []
        with closing(self._batches()) as batches:
            while self.step < self.steps:
                with window.waiting():
                    batch = next(batches)
                stop.check()
                try:
                    window.add(*self.train_step(batch, self.step), images=section.batch_size)
                except NonFiniteEmbeddingsError:
                    self._check_finite(window)
                    raise self._not_finite("the embeddings are", self.step + 1) from None
                self.step += 1
                stop.nothing_to_save = None
                skipped += batch.skipped
                last, stopping = self.step == self.steps, self._any_process(stop.requested)
                saving = last or stopping or self.step % section.checkpoint_every == 0
                if saving or self.step % section.log_every == 0:
                    yield self._step_done(window)
                    collapsed = self.collapse.add(self.step, window.losses())
                    yield from [Notice(collapsed)] if collapsed else []
                    yield from self._report_skips(skipped)
                    window, skipped = Window(), []
                with window.paused():
                    if saving:
                        yield self._save_checkpoint()
                    if stopping and not last:
                        text = f"stopped at step {self.step} of {self.steps}; the run is saved"
                        raise Interrupted(text, "the same command with --resume goes on")
                    every = self.recipe.validation.every
                    if every and self.step % every == 0 and not last:
                        with self.average.applied_to(self.model) if self.average else nullcontext():
                            yield from self._scores()

    def _batches(self) -> Generator[PairBatch]:
        """The batches from the current step on, epoch after epoch."""
        epoch, first = divmod(self.step, self.loader.batches_per_epoch)
        while True:
            yield from self.loader.batches(epoch, first, partial(self._image_size, epoch))
            epoch, first = epoch + 1, 0

    def _image_size(self, epoch: int, number: int) -> int:
        step = epoch * self.loader.batches_per_epoch + number
        stages, full_size = self.recipe.train.image_sizes, self.model.config.vision.image_size
        return curriculum.image_size(stages, step, self.steps, full_size)

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        return float(self.accelerator.reduce(raised, "sum")) > 0

    def _finish(self, stop: StopRequest) -> Iterator[Event]:
        metrics = {"loss": self.last_loss} if math.isfinite(self.last_loss) else {}
        stop.nothing_to_save = None
        with self.average.applied_to(self.model) if self.average else nullcontext():
            # The model comes first, with a card that cannot go wrong: nothing that fails from here on costs it.
            if self.is_main:
                self._save_model(metrics, f"# {self.recipe.name}\n")
            if self.validator:
                stop.hint = "the same command with --resume adds them"
                stop.nothing_to_save = f"stopped in the final validation; {self.folder.model} is saved without scores"
                stop.check()
                for event in self._scores():
                    metrics |= event.metrics if isinstance(event, Validated) else {}
                    yield event
                stop.nothing_to_save = None
            if self.is_main:
                self._save_model(metrics)
        collapsed = self.collapse.at_the_end()
        yield from [Notice(collapsed)] if collapsed else []
        if self.is_main:
            try:
                draw_loss_curve(self.folder.metrics, self.folder.loss_curve)
            except MissingExtraError as missing:
                yield Notice(f"no loss curve is drawn: {missing.message} ({missing.hint})")
            except Exception as problem:
                yield Notice(f"no loss curve is drawn: {one_line(problem)}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.unscored:
            raise TrainingError(
                f"the final validation failed: {one_line(self.unscored)}",
                f"the model is saved without its scores in {self.folder.model}",
            ) from self.unscored
        finished = Finished(self.step, self.folder.model, metrics, len(self.skipped), self._seconds())
        if self.is_main:
            self.folder.finish(finished)
        yield finished

    # --- reports --------------------------------------------------------------------------------------------------

    def _started(self) -> Started:
        batch_size, processes = self.recipe.train.batch_size, self.accelerator.num_processes
        wanted = self.recipe.objective.implementation
        form = choose_implementation(self.device, torch.float32, batch_size, processes, wanted)
        return Started(
            steps=self.steps,
            first_step=self.step,
            device="cpu" if self.device.type == "cpu" else str(self.device),
            precision=self.precision,
            processes=processes,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            pairs=len(self.data.indices),
            validation_pairs=len(self.data.held_out) if self.data.held_out else 0,
            batch_size=batch_size,
            micro_batch_size=self.train_step.micro_batch_size,
            loss_implementation=f"{form.name}, {form.reason}",
        )

    def _step_done(self, window: Window) -> StepDone:
        self._check_finite(window)
        self.last_loss = fmean(window.losses())
        per_second = window.images / window.seconds()
        return StepDone(
            step=self.step,
            epoch=self.step / self.loader.batches_per_epoch,
            loss=self.last_loss,
            learning_rate=self.train_step.learning_rate(self.step - 1),
            images_per_second=per_second,
            data_wait_fraction=window.waited / window.seconds(),
            seconds_left=(self.steps - self.step) * self.recipe.train.batch_size / per_second,
            memory_gib=memory_gib(self.device),
            gradient_norm=fmean([norm for norm in window.norms() if math.isfinite(norm)] or [0.0]),
            inv_tau=float(self.model.inv_tau.detach()),
        )

    def _check_finite(self, window: Window) -> None:
        losses = window.losses()
        for step, (loss, norm) in enumerate(zip(losses, window.norms(), strict=True), self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._not_finite("the loss is", step)
            # In fp16 a step whose gradient overflows is left out and the scale lowered: that is no failure.
            if not math.isfinite(norm) and self.precision != "fp16":
                raise self._not_finite("the gradient is", step)

    def _not_finite(self, what: str, step: int) -> NonFiniteLossError:
        saved = f"the last good checkpoint is {self.saved}" if self.saved else "no checkpoint was saved before it"
        return NonFiniteLossError(
            f"{what} no longer finite at step {step}; {saved}",
            "try a lower optimizer.learning_rate, more warm-up, a smaller optimizer.gradient_clip "
            'or train.precision = "fp32"',
        )

    def _report_skips(self, skipped: list[tuple[str, str]]) -> Iterator[Event]:
        """Count, list and report pairs that were not skipped before; every process takes part."""
        if self.accelerator.num_processes > 1:
            skipped = gather_object(skipped)
        for name, reason in skipped:
            if name not in self.skipped:
                self.skipped.add(name)
                if self.is_main:
                    with self.folder.skipped.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({"name": name, "reason": reason}) + "\n")
                yield PairSkipped(name, reason)

    def _scores(self) -> Iterator[Event]:
        """Score the model as it is; only the main process computes, the others wait.

        A validation that fails is reported and remembered in `unscored`; it does not end the run.
        """
        if not self.validator:
            return
        self.unscored = None
        if self.is_main:
            try:
                scores = self.validator.run(self.model, self.accelerator.autocast)
            except Exception as problem:
                self.unscored = problem
                yield Notice(f"validation failed after step {self.step}: {one_line(problem)}")
            else:
                yield Validated(self.step, scores)
        self.accelerator.wait_for_everyone()
        yield from self._report_skips(self.validator.unreadable())

    # --- files ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> CheckpointSaved:
        # The last update may have broken the weights although its loss and gradient were finite.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._not_finite("the weights are", self.step)
        if self.is_main:
            self.saved = state.save_checkpoint(
                self.folder.checkpoints,
                Progress(self.step, self._seconds(), self.precision, self.data_record),
                self.model,
                self.train_step.optimizer,
                self.accelerator.scaler,
                self.average,
                self.recipe.train.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()
        return CheckpointSaved(self.step, self.saved or self.folder.checkpoints)

    def _save_model(self, metrics: dict[str, float], card: str | None = None) -> None:
        self.model.config = self.model.config.model_copy(
            update={
                "inv_tau": float(self.model.inv_tau.detach()),
                "recipe": setup.recipe_record(self.recipe),
                "metrics": metrics,
            }
        )
        card = card or model_card(
            self.model.config, self.recipe.description, self._started(), len(self.skipped), self._seconds()
        )
        dtype = PRECISIONS[self.recipe.train.save_precision]
        save_model(self.folder.model, self.model, self.tokenizer, card_text=card, dtype=dtype)

    def _seconds(self) -> float:
        return self.start.progress.seconds + time.monotonic() - self.started
