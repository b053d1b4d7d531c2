"""The training loop: from a recipe to a model folder, as a stream of events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from cloob_cli.core.device import PRECISIONS
from cloob_cli.core.loss import contrastive_loss
from cloob_cli.data.images import Preprocess, normalise
from cloob_cli.data.loader import PairBatch, PairLoader
from cloob_cli.errors import Interrupted, LossInputError, MissingExtraError, NonFiniteLossError
from cloob_cli.recipe import Recipe
from cloob_cli.registry.store import save_model
from cloob_cli.training import setup, state
from cloob_cli.training.average import WeightAverage
from cloob_cli.training.cached import cached_gradient_step, find_micro_batch_size
from cloob_cli.training.card import model_card
from cloob_cli.training.events import (
    CheckpointSaved,
    Event,
    Finished,
    Notice,
    PairSkipped,
    Started,
    StepDone,
    Validated,
)
from cloob_cli.training.interrupt import StopRequest, stop_on_signals
from cloob_cli.training.optim import build_optimizer, learning_rate, set_learning_rate
from cloob_cli.training.precision import pick_precision
from cloob_cli.training.state import Progress, RunFolder
from cloob_cli.training.telemetry import MetricsFile, Window, draw_loss_curve, memory_gib
from cloob_cli.training.validation import Validator

_HOW_TO_GO_ON = "the same command with --resume goes on"


def train(recipe: Recipe, folder: Path, *, device: str | None = None, resume: bool = False) -> Iterator[Event]:
    """Train what `recipe` says in the run folder `folder`, yielding events as they happen.

    Under `accelerate launch` every process calls this; events come out on the main one only.

    Args:
        device: see `core.device.pick_device`.
        resume: go on from the newest good checkpoint in `folder`, or start where there is none.

    Raises:
        UsageError: `folder` holds something else, or a run that is not to be resumed or has another recipe.
        DataError: the data cannot be opened or holds less than a batch.
        DeviceError: no such device.
        NonFiniteLossError: the loss or the gradient is no longer a number.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    with stop_on_signals() as stop:
        run = Run(recipe, RunFolder(Path(folder)), device, resume)
        for event in run.events(stop):
            if run.is_main:
                yield event


class Run:
    """One process's part of a training run; `train` is its use."""

    def __init__(self, recipe: Recipe, folder: RunFolder, device: str | None, resume: bool) -> None:
        self.recipe, self.folder = recipe, folder
        self.notices: list[str] = []
        chosen = setup.choose_device(device)
        checkpoint = None
        if resume:
            checkpoint, self.notices = state.newest_good(folder.checkpoints)
        done = state.load_progress(checkpoint) if checkpoint else None
        self.precision = done.precision if done else pick_precision(recipe.train.precision, chosen)
        self.accelerator = setup.start_accelerator(chosen, self.precision)
        self.is_main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        if self.is_main:
            folder.check(recipe, resume)

        data = setup.open_data(recipe.data, recipe.validation.retrieval_pairs)
        self.data = data
        with self.accelerator.main_process_first():
            if self.is_main:
                folder.create(recipe)
            text = recipe.model.text
            self.tokenizer = setup.make_tokenizer(
                recipe.tokenizer, text.context_length if text else 77, data, folder.tokenizer
            )
        config = setup.model_config(recipe, self.tokenizer.vocab_size)
        self.model = setup.build_model(recipe, config, self.device)
        self.preprocess = Preprocess(config.vision.image_size, config.preprocess)
        self.loader = PairLoader(
            data.source,
            data.indices,
            self.tokenizer,
            self.preprocess,
            recipe.augment,
            batch_size=recipe.train.batch_size,
            seed=recipe.seed,
            workers=recipe.data.workers,
            in_memory=recipe.data.in_memory,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            device=self.device,
        )
        self.steps = recipe.train.steps or max(1, round((recipe.train.epochs or 0) * self.loader.batches_per_epoch))
        self.retrieval_from = round(recipe.objective.hopfield_warmup * self.steps)
        self.validator = Validator(data.held_out, recipe.validation, self.preprocess, self.tokenizer)
        self.average = WeightAverage(self.model, recipe.train.ema) if recipe.train.ema else None
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.wrapped, self.accelerated_optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.processes = torch.distributed.group.WORLD if self.accelerator.num_processes > 1 else None
        self.micro_batch_size = self._micro_batch_size(recipe.train.micro_batch_size)
        self.step = 0
        self.seconds_before = 0.0
        self.saved: Path | None = checkpoint
        if checkpoint and done:
            state.load_checkpoint(checkpoint, self.model, self.optimizer, self.accelerator.scaler, self.average)
            self.step, self.seconds_before = done.step, done.seconds
        self.started = time.monotonic()
        self.last_loss = math.nan
        self.skipped: set[str] = set()
        self.pending_skips: list[tuple[str, str]] = []

    # --- the run --------------------------------------------------------------------------------------------------

    def events(self, stop: StopRequest) -> Iterator[Event]:
        """Train to the end. All processes go through the same steps; only the main one's events are complete."""
        yield from (Notice(text) for text in self.notices)
        yield self._started()
        metrics_file = MetricsFile(self.folder.metrics, self.step) if self.is_main else None
        try:
            for event in chain(self._steps(stop), self._finish()):
                if metrics_file and isinstance(event, StepDone | Validated):
                    metrics_file.add(event)
                yield event
        finally:
            if metrics_file:
                metrics_file.close()

    def _steps(self, stop: StopRequest) -> Iterator[Event]:
        section, window = self.recipe.train, Window()
        with closing(self._batches()) as batches:
            while self.step < self.steps:
                with window.waiting():
                    batch = next(batches)
                rate = learning_rate(self.step, self.steps, self.recipe.optimizer)
                window.add(*self._train_step(batch, rate), images=section.batch_size)
                self.step += 1
                self.pending_skips += batch.skipped
                last, stopping = self.step == self.steps, self._any_process(stop.requested)
                saving = last or stopping or self.step % section.checkpoint_every == 0
                if saving or self.step % section.log_every == 0:
                    yield self._step_done(window, rate)
                    window = Window()
                    yield from self._report_skips(self.pending_skips)
                with window.paused():
                    if saving:
                        yield self._save_checkpoint()
                    if stopping and not last:
                        text = f"stopped at step {self.step} of {self.steps}; the run is saved"
                        raise Interrupted(text, _HOW_TO_GO_ON)
                    every = self.recipe.validation.every
                    if every and self.step % every == 0 and not last:
                        yield from self._validate()

    def _finish(self) -> Iterator[Event]:
        metrics: dict[str, float] = {"loss": self.last_loss}
        with self.average.applied_to(self.model) if self.average else nullcontext():
            for event in self._scores():
                metrics |= event.metrics if isinstance(event, Validated) else {}
                yield event
            if self.is_main:
                self._save_model(metrics)
        if self.is_main:
            try:
                draw_loss_curve(self.folder.metrics, self.folder.loss_curve)
            except MissingExtraError as missing:
                yield Notice(f"no loss curve is drawn: {missing.message} ({missing.hint})")
        self.accelerator.wait_for_everyone()
        yield Finished(self.step, self.folder.model, metrics, len(self.skipped), self._seconds())

    # --- a step ---------------------------------------------------------------------------------------------------

    def _batches(self) -> Generator[PairBatch]:
        """The batches from the current step on, epoch after epoch."""
        epoch, first = divmod(self.step, self.loader.batches_per_epoch)
        while True:
            yield from self.loader.batches(epoch, first)
            epoch, first = epoch + 1, 0

    def _train_step(self, batch: PairBatch, rate: float) -> tuple[Tensor, Tensor]:
        """Update the weights with one batch; the loss and the norm of the gradient, scalars on the device."""
        torch.manual_seed(_step_seed(self.recipe.seed, self.step, self.accelerator.process_index))
        set_learning_rate(self.optimizer, rate)
        pixels = batch.pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = normalise(pixels, self.model.config.preprocess)
        tokens = batch.tokens.to(self.device, non_blocking=True)
        caption_ids = batch.caption_ids.to(self.device) if self.recipe.objective.mask_equal_captions else None
        loss = self._gradient(pixels, tokens, caption_ids)
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.recipe.optimizer.gradient_clip or math.inf
        )
        self.accelerated_optimizer.step()
        self.accelerated_optimizer.zero_grad()
        if self.recipe.objective.learn_inv_tau:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(self.recipe.objective.inv_tau_max))
        if self.average:
            self.average.update(self.model, self.step)
        return loss, norm

    def _gradient(self, pixels: Tensor, tokens: Tensor, caption_ids: Tensor | None) -> Tensor:
        """Add the batch's gradient to the parameters; the loss, detached."""
        learnt = [self.model.logit_scale] if self.recipe.objective.learn_inv_tau else []
        if self.micro_batch_size is None:
            loss = self._loss(caption_ids, *self.wrapped(pixels, tokens), *learnt)
            self.accelerator.backward(loss)
            return loss.detach()
        # By the share that a process should have, so that all have equally many slices if some lack an unreadable pair.
        count = math.ceil(self.loader.share / self.micro_batch_size)
        return cached_gradient_step(
            lambda piece: self.wrapped(*piece),
            list(zip(pixels.tensor_split(count), tokens.tensor_split(count), strict=True)),
            partial(self._loss, caption_ids),
            model=self.model,
            loss_tensors=learnt,
            backward=self.accelerator.backward,
            no_sync=lambda: self.accelerator.no_sync(self.wrapped),
        )

    def _loss(
        self, caption_ids: Tensor | None, images: Tensor, texts: Tensor, logit_scale: Tensor | None = None
    ) -> Tensor:
        section = self.recipe.objective
        warming_up = section.name == "cloob" and self.step < self.retrieval_from
        try:
            return contrastive_loss(
                images,
                texts,
                objective="infoloob" if warming_up else section.name,
                inv_tau=section.inv_tau if logit_scale is None else logit_scale.exp(),
                scale_hopfield=section.scale_hopfield,
                caption_ids=caption_ids,
                implementation=section.implementation,
                process_group=self.processes,
            )
        except LossInputError:
            if bool(images.isfinite().all()) and bool(texts.isfinite().all()):
                raise
            raise self._not_finite("the embeddings are", self.step) from None

    def _micro_batch_size(self, wanted: int | Literal["auto"] | None) -> int | None:
        """Pairs that this process embeds at once; None: its whole share, which "auto" tries first on a GPU."""
        share = self.loader.share
        if wanted == "auto" and self.device.type != "cpu":
            wanted = find_micro_batch_size(self._try_micro_batch, share, self.processes)
        return wanted if isinstance(wanted, int) and wanted < share else None

    def _try_micro_batch(self, size: int) -> None:
        vision, text = self.model.config.vision, self.model.config.text
        pixels = torch.zeros(size, 3, vision.image_size, vision.image_size, device=self.device)
        tokens = torch.full((size, text.context_length), text.vocab_size - 1, device=self.device)
        try:
            sum(embeddings.sum() for embeddings in self.model(pixels, tokens)).backward()
        finally:
            self.model.zero_grad()

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        return float(self.accelerator.reduce(raised, "sum")) > 0

    # --- reports --------------------------------------------------------------------------------------------------

    def _started(self) -> Started:
        return Started(
            steps=self.steps,
            first_step=self.step,
            device="cpu" if self.device.type == "cpu" else str(self.device),
            precision=self.precision,
            processes=self.accelerator.num_processes,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            pairs=len(self.data.indices),
            validation_pairs=len(self.data.held_out) if self.data.held_out else 0,
            batch_size=self.recipe.train.batch_size,
            micro_batch_size=self.micro_batch_size,
        )

    def _step_done(self, window: Window, rate: float) -> StepDone:
        losses, norms = window.losses(), window.norms()
        self._check_finite(losses, norms)
        self.last_loss = fmean(losses)
        per_second = window.images / window.seconds()
        return StepDone(
            step=self.step,
            epoch=self.step / self.loader.batches_per_epoch,
            loss=self.last_loss,
            learning_rate=rate,
            images_per_second=per_second,
            data_wait_share=window.waited / window.seconds(),
            seconds_left=(self.steps - self.step) * self.recipe.train.batch_size / per_second,
            memory_gib=memory_gib(self.device),
            gradient_norm=fmean([norm for norm in norms if math.isfinite(norm)] or [0.0]),
            inv_tau=float(self.model.inv_tau.detach()),
        )

    def _check_finite(self, losses: list[float], norms: list[float]) -> None:
        # In fp16 a step whose gradient overflows is left out and the scale lowered: only the loss tells.
        for back, (loss, norm) in enumerate(zip(reversed(losses), reversed(norms), strict=True)):
            if math.isfinite(loss) and (math.isfinite(norm) or self.precision == "fp16"):
                continue
            raise self._not_finite("the gradient is" if math.isfinite(loss) else "the loss is", self.step - back)

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
        self.pending_skips = []
        for name, reason in skipped:
            if name not in self.skipped:
                self.skipped.add(name)
                if self.is_main:
                    with self.folder.skipped.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({"name": name, "reason": reason}) + "\n")
                yield PairSkipped(name, reason)

    def _validate(self) -> Iterator[Event]:
        with self.average.applied_to(self.model) if self.average else nullcontext():
            yield from self._scores()

    def _scores(self) -> Iterator[Event]:
        """Score the model as it is; only the main process computes, the others wait."""
        if not self.validator:
            return
        if self.is_main:
            yield Validated(self.step, self.validator.run(self.model, self.accelerator.autocast))
        self.accelerator.wait_for_everyone()
        yield from self._report_skips(self.validator.unreadable())

    # --- files ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> CheckpointSaved:
        if self.is_main:
            self.saved = state.save_checkpoint(
                self.folder.checkpoints,
                Progress(self.step, self._seconds(), self.precision),
                self.model,
                self.optimizer,
                self.accelerator.scaler,
                self.average,
                self.recipe.train.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()
        return CheckpointSaved(self.step, self.saved or self.folder.checkpoints)

    def _save_model(self, metrics: dict[str, float]) -> None:
        config = self.model.config.model_copy(
            update={
                "inv_tau": float(self.model.inv_tau.detach()),
                "recipe": setup.recipe_record(self.recipe),
                "metrics": metrics,
            }
        )
        self.model.config = config
        card = model_card(config, self.recipe.description, self._started(), len(self.skipped), self._seconds())
        dtype = PRECISIONS[self.recipe.train.save_precision]
        save_model(self.folder.model, self.model, self.tokenizer, card_text=card, dtype=dtype)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
