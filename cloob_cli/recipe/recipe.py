"""A whole recipe: its sections, and what must hold between them."""

from __future__ import annotations

from pydantic import Field, model_validator

from cloob_cli.core.model_config import CLIP_VOCAB_SIZE
from cloob_cli.recipe.data import AugmentSection, DataSection, ValidationSection
from cloob_cli.recipe.model import ModelSection, TokenizerSection
from cloob_cli.recipe.training import FinetuneSection, ObjectiveSection, OptimizerSection, TeacherSection, TrainSection
from cloob_cli.strict_model import FiniteModel


class Recipe(FiniteModel):
    """A whole recipe. `name` is also the model's."""

    name: str = Field(
        min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, `.`, `_`, `-`"
    )
    description: str = Field(default="", description="a sentence for the model card")
    seed: int = Field(default=0, ge=0, lt=2**64, description="of the weights, the order and the augmentation")
    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection
    augment: AugmentSection = AugmentSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection
    finetune: FinetuneSection = FinetuneSection()
    teacher: TeacherSection | None = None
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _patches(self) -> Recipe:
        if self.train.patch_dropout and self.model.vision is not None and self.model.vision.kind != "vit":
            raise ValueError("train.patch_dropout is for a vit: a resnet has no patches to leave out")
        return self

    @model_validator(mode="after")
    def _starts_from_a_model(self) -> Recipe:
        if self.tokenizer.kind == "init" and self.model.init is None:
            raise ValueError("tokenizer.kind = 'init' goes with model.init")
        if self.finetune.interpolate is not None and self.model.init is None:
            raise ValueError("finetune.interpolate goes with model.init: a new model has no start worth keeping")
        return self

    @model_validator(mode="after")
    def _vocabularies_agree(self) -> Recipe:
        if self.tokenizer.kind == "init":
            return self
        given = self.model.text.vocab_size if self.model.text else None
        size = self.tokenizer.vocab_size or CLIP_VOCAB_SIZE
        if given not in {None, size}:
            raise ValueError(f"model.text.vocab_size is {given}, the tokenizer has {size} entries; leave the key out")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Recipe:
        vision, sizes = self.model.vision, [size for _, size in self.train.image_sizes]
        if vision is None or not sizes:
            return self
        if sizes[-1] != vision.image_size:
            raise ValueError(f"the last of train.image_sizes must be model.vision.image_size, {vision.image_size}")
        step = vision.patch_size or 16
        for size in sizes:
            if not 0 < size <= vision.image_size or size % step:
                raise ValueError(f"train.image_sizes are multiples of {step} up to {vision.image_size}, not {size}")
        return self
