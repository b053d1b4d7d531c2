"""One training step: a batch in, new weights out."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from cloob_cli.core.loss import Objective, contrastive_loss
from cloob_cli.core.model import CloobModel
from cloob_cli.core.transformer import VisionTransformer
from cloob_cli.data.batch import PairBatch
from cloob_cli.data.preprocess import normalize
from cloob_cli.recipe import ObjectiveSection, OptimizerSection, TrainSection
from cloob_cli.training.ema import EMA
from cloob_cli.training.gradient_cache import cached_gradient_step, find_micro_batch_size
from cloob_cli.training.hopfield_metrics import first_rows
from cloob_cli.training.loss_implementation import choose_implementation
from cloob_cli.training.optimizer import build_optimizer, set_learning_rate
from cloob_cli.training.precision import Precision
from cloob_cli.training.schedules import learning_rate
from cloob_cli.training.teacher import Teacher

# What enters the matrix products of the loss on a GPU, by the precision of the towers; sums are float32 always.
_LOSS_PRECISION: dict[Precision, Literal["fp32", "tf32", "bf16"]] = {"fp32": "fp32", "fp16": "tf32", "bf16": "bf16"}

# What a loss with retrieval is before retrieval is switched on.
_WITHOUT_RETRIEVAL: dict[str, Objective] = {"cloob": "infoloob", "clip_hopfield": "clip"}


class TrainingStep:
    """Updates a model with one batch after another.

    Args:
        model: on the accelerator's device. It is changed in place.
        steps: of the whole run; schedule and Hopfield warm-up depend on it.
        local_batch_size: pairs of a batch that this process embeds, where none is unreadable.
        seed: any random numbers that the towers draw are a function of (seed, step, process).
        teacher: its loss is added to the objective's.

    Attributes:
        ema: the averaged weights, or None.
        micro_batch_size: pairs that this process embeds at once; None: all at once.
        loss_implementation: the implementation of the loss, and the reason for it.
        observe: the next batch's embeddings are to be kept in `observed`.
        observed: the first image and text embeddings of the last such batch on this process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: CloobModel,
        objective: ObjectiveSection,
        optimizer: OptimizerSection,
        train: TrainSection,
        *,
        precision: Precision,
        steps: int,
        local_batch_size: int,
        seed: int,
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.ema = model, EMA(model, train.ema) if train.ema else None
        self.teacher = teacher
        self.projection = teacher.projection.to(accelerator.device) if teacher and teacher.projection else None
        self.optimizer = build_optimizer(model, optimizer, self.projection)
        self._accelerator, self._device = accelerator, accelerator.device
        self._wrapped, self._accelerated_optimizer = accelerator.prepare(model, self.optimizer)
        self._processes = torch.distributed.group.WORLD if accelerator.num_processes > 1 else None
        self._objective, self._schedule = objective, optimizer
        self._steps, self._local_batch_size, self._seed = steps, local_batch_size, seed
        self._retrieval_from = round(objective.hopfield_warmup * steps) if objective.name in _WITHOUT_RETRIEVAL else 0
        self.observe = False
        self.observed: tuple[Tensor, Tensor] | None = None
        self._patch_dropout, self._all_patches_from = train.patch_dropout, round(train.patch_dropout_until * steps)
        self.micro_batch_size = self._find_micro_batch_size(train)
        self._loss_precision = _LOSS_PRECISION[precision] if self._device.type == "cuda" else "fp32"
        self.loss_implementation = choose_implementation(
            objective.implementation,
            local_batch_size,
            model.config.embed_dim,
            self._device,
            objective.name,
            self._loss_precision,
            self._processes,
            objective.scale_hopfield,
        )

    def __call__(self, batch: PairBatch, step: int) -> tuple[Tensor, Tensor]:
        """Update the weights with the batch of step `step` (from 0).

        Returns:
            The loss of the joint batch and the norm of its gradient before clipping, scalars on the device.

        Raises:
            NonFiniteEmbeddingsError: embeddings are not finite, on whichever process; the weights are left as they are.
        """
        torch.manual_seed(_step_seed(self._seed, step, self._accelerator.process_index))
        set_learning_rate(self.optimizer, partial(learning_rate, step, self._steps, self._schedule))
        if isinstance(self.model.visual, VisionTransformer):
            self.model.visual.patch_dropout = self._patch_dropout if step < self._all_patches_from else 0.0
        pixels = batch.pixels.to(self._device, non_blocking=True)
        if pixels.ndim > 2:
            pixels = normalize(pixels, self.model.config.preprocess)
        tokens = batch.tokens.to(self._device, non_blocking=True)
        caption_ids = batch.caption_ids.to(self._device) if self._objective.mask_equal_captions else None
        wanted = self.teacher.embeddings(batch, self._device) if self.teacher else None
        loss = self._gradient(pixels, tokens, partial(self._loss, caption_ids, step < self._retrieval_from, wanted))
        parameters = [*self.model.parameters(), *(self.projection.parameters() if self.projection else ())]
        norm = self._accelerator.clip_grad_norm_(parameters, self._schedule.gradient_clip or math.inf)
        self._accelerated_optimizer.step()
        self._accelerated_optimizer.zero_grad()
        if self._objective.learn_inv_tau:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(self._objective.inv_tau_max))
        if self.ema:
            self.ema.update(self.model, step)
        return loss, norm

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        return learning_rate(step, self._steps, self._schedule)

    def _gradient(self, pixels: Tensor, tokens: Tensor, loss_function: partial[Tensor]) -> Tensor:
        """Add the batch's gradient to the parameters; the loss, detached."""
        learned = [self.model.logit_scale] if self._objective.learn_inv_tau else []
        if self.micro_batch_size is None:
            loss = loss_function(*self._embed(pixels, tokens), *learned)
            self._accelerator.backward(loss)
            return loss.detach()
        # By the full local batch, so that all processes have equally many slices where some lack an unreadable pair.
        count = math.ceil(self._local_batch_size / self.micro_batch_size)
        return cached_gradient_step(
            lambda piece: self._embed(*piece),
            list(zip(pixels.tensor_split(count), tokens.tensor_split(count), strict=True)),
            loss_function,
            model=self.model,
            loss_tensors=learned,
            backward=self._accelerator.backward,
            no_sync=lambda: self._accelerator.no_sync(self._wrapped),
        )

    def _embed(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, [m, D] of pixels [m, 3, H, W] and [m, k, D] of tokens [m, k, context], or of kept features."""
        images, texts = self._wrapped(pixels, tokens.flatten(0, 1))
        return images, texts.unflatten(0, tokens.shape[:2])

    def _loss(
        self,
        caption_ids: Tensor | None,
        warming_up: bool,
        wanted: tuple[Tensor, Tensor] | None,
        images: Tensor,
        texts: Tensor,
        logit_scale: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of image embeddings [n, D] against each of the k captions of texts [n, k, D], and the
        teacher's where it has said what is `wanted`.
        """
        if self.observe:
            self.observed = first_rows(images, texts)
        section = self._objective
        draws = texts.shape[1]
        losses = [
            contrastive_loss(
                images,
                texts[:, number],
                objective=_WITHOUT_RETRIEVAL[section.name] if warming_up else section.name,
                inv_tau=section.inv_tau if logit_scale is None else logit_scale.exp(),
                scale_hopfield=section.scale_hopfield,
                caption_ids=None if caption_ids is None else caption_ids[:, number],
                implementation=self.loss_implementation.name,
                precision=self._loss_precision,
                process_group=self._processes,
            )
            for number in range(draws)
        ]
        loss = torch.stack(losses).mean()
        if self.teacher is not None and wanted is not None:
            inv_tau = section.inv_tau if logit_scale is None else logit_scale.exp()
            loss = loss + self.teacher.loss(images, texts, wanted, inv_tau, self._processes)
        return loss

    def _find_micro_batch_size(self, train: TrainSection) -> int | None:
        size = train.micro_batch_size
        if size == "auto" and self._device.type != "cpu":
            attempt = partial(self._try_micro_batch, train.captions_per_image)
            size = find_micro_batch_size(attempt, self._local_batch_size, self._processes)
        return size if isinstance(size, int) and size < self._local_batch_size else None

    def _try_micro_batch(self, captions: int, size: int) -> None:
        """Embed `size` pairs and go back; raises torch's error where memory does not suffice."""
        vision, text = self.model.config.vision, self.model.config.text
        pixels = torch.zeros(size, 3, vision.image_size, vision.image_size, device=self._device)
        tokens = torch.full((size * captions, text.context_length), text.vocab_size - 1, device=self._device)
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            images, texts = self.model(pixels, tokens)
            (images.sum() + texts.sum()).backward()
        finally:
            self.model.zero_grad()
            self.model.load_state_dict(before, strict=False)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
