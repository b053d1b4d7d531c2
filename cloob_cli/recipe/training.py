"""Sections of a recipe: the loss, the optimizer, length and batches, fine-tuning, a teacher."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from cloob_cli.strict_model import FiniteModel, nearest


class ObjectiveSection(FiniteModel):
    """The loss. See docs/loss.md."""

    name: Literal["cloob", "infoloob", "clip", "clip_hopfield"] = Field(
        default="cloob",
        description="InfoLOOB after retrieval, InfoLOOB alone, InfoNCE alone, or InfoNCE after retrieval",
    )
    inv_tau: float = Field(default=30.0, gt=0, description="inverse temperature; where it is learned, its start")
    learn_inv_tau: bool = Field(default=False, description="learn it; the paper keeps it fixed")
    inv_tau_max: float = Field(default=100.0, gt=0, description="a learned one stays below this")
    scale_hopfield: float = Field(default=8.0, gt=0, description="beta, the inverse temperature of retrieval")
    hopfield_warmup: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="fraction of the steps before retrieval is switched on: at initialization all "
        "embeddings are alike, retrieval returns nearly the same average for every query and the gradient all but "
        "vanishes",
    )
    mask_equal_captions: bool = Field(default=False, description="pairs with an equal caption are not negatives")
    implementation: Literal["auto", "definition", "tiled", "triton"] = Field(
        default="auto",
        description="what computes the loss, all with the same numbers; auto measures at the start of a run on a GPU",
    )


class OptimizerSection(FiniteModel):
    """AdamW, alone or beside Muon. Biases and the temperature never decay; for the rest see `decay`."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: torch's Muon for the matrices in the transformers' blocks, AdamW for everything else",
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of muon")
    learning_rate: float = Field(default=1e-3, ge=0, description="after the warm-up")
    image_learning_rate: float | None = Field(
        default=None, ge=0, description="of the image tower; left out: `learning_rate`"
    )
    text_learning_rate: float | None = Field(
        default=None, ge=0, description="of the text tower; left out: `learning_rate`"
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="each block's learning rate is that of the block after it times this; what comes before the "
        "blocks is one lower still, what comes after them has the tower's own",
    )
    weight_decay: float = Field(default=0.1, ge=0, description="strength of the decay")
    decay: Literal["matrices", "names"] = Field(
        default="matrices",
        description="what decays. matrices: parameters of two or more dimensions; names: all whose name is without "
        "bn, ln, bias and logit_scale, the rule of ml-jku/cloob and open_clip's first versions, by which the "
        "BatchNorm gains of a ResNet's shortcuts and a ViT's class token decay too",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float = Field(default=0.98, ge=0, lt=1, description="decay of the mean of their squares")
    epsilon: float = Field(default=1e-6, gt=0, description="keeps the division by their root finite")
    gradient_clip: float = Field(
        default=1.0, ge=0, description="largest norm of the whole gradient; 0: it is never clipped"
    )
    schedule: Literal["cosine", "cosine_restarts", "constant"] = Field(
        default="cosine", description="of the learning rate after the warm-up"
    )
    cycles: int = Field(default=1, gt=0, description="of cosine_restarts")
    warmup_steps: int | None = Field(default=None, ge=0, description="steps in which the learning rate rises")
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1, description="of all steps, without warmup_steps")
    warmup_from_zero: bool = Field(
        default=False, description="the first step's rate is zero, as with torch's LambdaLR, not one warm-up step's"
    )

    @field_validator("gradient_clip", mode="before")
    @classmethod
    def _null_is_off(cls, value: Any) -> Any:
        return 0.0 if value is None else value  # JSON has a null, TOML has none


_PART = re.compile(r"(image|text)(\.(trunk|embedding|projection|layers(:(?P<first>\d+)(-(?P<last>\d+))?)?))?")
_PART_NAMES = [t + p for t in ("image", "text") for p in ("", ".trunk", ".embedding", ".layers", ".projection")]


def _parts(value: list[str]) -> list[str]:
    for name in value:
        found = _PART.fullmatch(name)
        if found is None:
            near = nearest(name.partition(":")[0], _PART_NAMES)
            meant = f"did you mean {near!r}?" if near else f"there are {', '.join(_PART_NAMES)}"
            raise ValueError(f"{name!r} is no part of a model, {meant} Blocks are named like 'image.layers:0-9'")
        if found["last"] is not None and int(found["last"]) < int(found["first"]):
            raise ValueError(f"{name!r} has its first block behind its last")
    return value


class TrainSection(FiniteModel):
    """Length of the training and size of its batches.

    `batch_size` is the contrastive batch over all processes: every pair sees that many minus one negatives.
    Gradient accumulation does not enlarge a contrastive batch (negatives of one slice never meet those of the
    next), so there is no such key. `micro_batch_size`, the pairs that a process embeds at once, gives the exact
    gradient of the large batch in slices, at the price of one more forward pass; "auto" finds what fits a GPU.
    """

    epochs: float | None = Field(default=None, gt=0, description="passes over the training pairs")
    steps: int | None = Field(default=None, gt=0, description="takes precedence over epochs")
    batch_size: int = Field(default=512, ge=2, description="pairs in a contrastive batch, over all processes")
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None, description="left out: the whole batch at once"
    )
    captions_per_image: int = Field(
        default=1,
        ge=1,
        description="captions drawn of each image in a step, none twice where there are enough; the loss is the mean "
        "of the contrastive losses of the batch's images with each draw",
    )
    image_sizes: list[tuple[float, int]] = Field(
        default_factory=list,
        description="[fraction of the steps, pixels a side from there on], ...: small images first; the last is the "
        "model's size. Left out: that size always",
    )
    freeze: Annotated[list[str], AfterValidator(_parts)] = Field(
        default_factory=list,
        description='parts that stay as they are: "image" or "text", a whole tower; "image.trunk", all of it but its '
        'projection; "image.embedding", what comes before its blocks; "image.layers:0-9", blocks, the first is 0; '
        '"image.projection"',
    )
    feature_cache: bool = Field(
        default=True,
        description="compute the features of a frozen tower once and keep them on disk, where the tower always sees "
        "the same (of images: no augmentation, one size); they may be computed anew in every step instead",
    )
    batch_norm: Literal["auto", "batch", "kept"] = Field(
        default="auto",
        description="what a ResNet's batch normalization goes by. batch: the statistics of the batch, whose running "
        "means it keeps; kept: the running means as they are, which do not change. auto: kept for a model.init, batch "
        "for a new model",
    )
    patch_dropout: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="fraction of an image's patches that a ViT does not see in a step"
    )
    patch_dropout_until: float = Field(
        default=1.0, gt=0.0, le=1.0, description="fraction of the steps from which on it sees all of them"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where it is fast"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    compile: bool = Field(default=False, description="torch.compile the towers")
    log_every: int = Field(default=10, gt=0, description="steps between two rows of metrics.jsonl")
    checkpoint_every: int = Field(default=1000, gt=0, description="steps")
    keep_checkpoints: int = Field(default=2, gt=0, description="older ones are deleted")
    save_precision: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of the finished weights")
    ema: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="decay of an averaged copy that is saved instead; 0: none"
    )

    @model_validator(mode="after")
    def _length(self) -> TrainSection:
        if self.epochs is None and self.steps is None:
            raise ValueError("give train.steps or train.epochs")
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is above batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _stages(self) -> TrainSection:
        fractions = [fraction for fraction, _ in self.image_sizes]
        if fractions and (fractions[0] != 0 or fractions[-1] >= 1 or fractions != sorted(set(fractions))):
            raise ValueError("image_sizes are [fraction, size] with fractions that rise from 0 and stay below 1")
        return self


class FinetuneSection(FiniteModel):
    """The last step of a run that started from a model (`model.init`)."""

    interpolate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="save the weights so far between start (0) and end (1), after a comparison of 0, 0.1, ... 1; left "
        "out: the end, without a comparison",
    )


class TeacherSection(FiniteModel):
    """A model whose embeddings of the training pairs the new one learns from, besides the objective.

    They are computed once, of images without random changes, and kept in the run's folder.
    """

    model: str = Field(min_length=1, description="a zoo name, a folder, or hf://ORG/REPO")
    kind: Literal["embeddings", "scores"] = Field(
        default="embeddings",
        description="embeddings: their squared distance from the teacher's; scores: the divergence of a batch's "
        "probabilities from the teacher's, for a teacher of any width",
    )
    weight: float = Field(default=1.0, gt=0, description="of this loss; the objective's is 1")
    projection: bool = Field(
        default=False,
        description="of embeddings: compare by linear maps into the teacher's space, which are trained and then "
        "dropped; needed where the widths differ",
    )

    @model_validator(mode="after")
    def _maps(self) -> TeacherSection:
        if self.projection and self.kind == "scores":
            raise ValueError("projection goes with kind = 'embeddings': scores compare teachers of any width")
        return self
