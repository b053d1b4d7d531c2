"""The training recipe: one closed section for each concern, every key with its default and its reason.

`load_recipe(path, overrides)` reads TOML (or the JSON that a run keeps of its own recipe), applies `section.key=value`
overrides and checks the whole. Paths in a recipe are relative to the recipe's own folder; paths in an override are
relative to the working directory. The result holds absolute paths, so that a run can be resumed from elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from cloob_cli import assets
from cloob_cli.core.config import (
    ARCHITECTURES,
    CLIP_VOCAB_SIZE,
    ModelConfig,
    PreprocessConfig,
    TextConfig,
    TokenizerConfig,
    VisionConfig,
)
from cloob_cli.errors import RecipeError
from cloob_cli.schema import StrictModel, nearest, parse


class TextSection(TextConfig):
    """The text tower, a transformer; its vocabulary is the tokenizer's."""

    # A model needs the number, its recipe does not.
    vocab_size: int | None = Field(  # type: ignore[assignment]
        default=None, gt=0, description="entries of the vocabulary; left out: the tokenizer's, and it must equal that"
    )


class ModelSection(StrictModel):
    """Either `architecture`, a name (RN50, RN50x4, ViT-B-32, ViT-B-16, each also with -quickgelu), or `embed_dim` with
    `vision` and `text`, or `init`, a model to start from: it brings everything below, and what is named here changes.
    See [fine-tuning](finetuning.md).
    """

    init: str | None = Field(
        default=None, min_length=1, description="start from this model: a zoo name, a folder, or hf://ORG/REPO"
    )
    architecture: str | None = Field(default=None, description="a name; its parts can be changed key by key")
    embed_dim: int | None = Field(default=None, gt=0, description="length of an embedding")
    vision: VisionConfig | None = None
    text: TextSection | None = None
    preprocess: PreprocessConfig = PreprocessConfig()
    templates: list[str] = Field(default_factory=list, description="prompts that suit the model, {c} is the class")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("architecture")
        if name is not None:
            if data.get("init") is not None:
                raise ValueError("give model.init or model.architecture: the model to start from has its own")
            if name not in ARCHITECTURES:
                near = nearest(str(name), ARCHITECTURES)
                raise ValueError(f"unknown architecture {name!r}" + (f", did you mean {near!r}?" if near else ""))
            base = ARCHITECTURES[name]
            data = data | {"embed_dim": data.get("embed_dim", base["embed_dim"])}
            towers = {"vision": base["vision"], "text": base["text"] | {"vocab_size": None}}
            for tower, settings in towers.items():
                given = data.get(tower)
                data[tower] = settings | (given if isinstance(given, dict) else {})
        return data

    @model_validator(mode="after")
    def _complete(self) -> ModelSection:
        if self.init is not None and (self.vision is None or self.text is None):
            return self  # not filled in yet, see `load_recipe`
        if self.embed_dim is None or self.vision is None or self.text is None:
            raise ValueError("name an architecture, a model.init, or embed_dim with model.vision and model.text")
        return self


class TokenizerSection(StrictModel):
    """`clip` is CLIP's 49,408 entries; `bpe` trains one of `vocab_size` entries on the recipe's own captions; `init` is
    that of `model.init`, and the default there. Another one than that gives the text tower a new table of tokens.
    """

    kind: Literal["clip", "bpe", "init"] = Field(default="clip", description="where the vocabulary comes from")
    vocab_size: int | None = Field(default=None, ge=514, description="entries of a trained one, special ones included")

    @model_validator(mode="after")
    def _size(self) -> TokenizerSection:
        if (self.kind == "bpe") != (self.vocab_size is not None):
            raise ValueError("vocab_size goes with kind = 'bpe', and only with it")
        return self

    def config(self) -> TokenizerConfig:
        """That of a new vocabulary."""
        if self.kind == "init":
            raise AssertionError("the tokenizer of model.init has its own configuration")
        return TokenizerConfig(kind=self.kind)


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # s3://bucket/..., https://...


def _local(value: str | list[str] | None) -> str | list[str] | None:
    for path in [value] if isinstance(value, str) else value or []:
        if not path.strip():
            raise ValueError("the path is empty; leave the key out instead")
        if _ADDRESS.match(path):
            raise ValueError(f"{path} is an address; data are read from this machine's folders: copy or mount it")
    return value


class DataSection(StrictModel):
    """The training pairs. `train` is a folder, a file or a pattern like `data/{00000..00099}.tar`, or a list."""

    train: Annotated[str | list[str], AfterValidator(_local)] = Field(description="the training pairs")
    format: Literal["auto", "parquet", "folder", "csv", "webdataset"] = Field(
        default="auto", description="auto: found out from what is there"
    )
    image_key: str | None = Field(default=None, description="column of the image (left out: found by name)")
    caption_key: str | None = Field(default=None, description="column of the caption (left out: found by name)")
    separator: str | None = Field(default=None, description="of a CSV file (left out: found out)")
    validation: Annotated[str | list[str] | None, AfterValidator(_local)] = Field(
        default=None, description="a source of its own, like train"
    )
    validation_fraction: float = Field(
        default=0.0, ge=0.0, lt=0.5, description="else: the fraction of train to hold out"
    )
    in_memory: bool | Literal["auto"] = Field(default="auto", description="keep decoded images (uint8) in memory")
    workers: int | Literal["auto"] = Field(default="auto", description="processes that read and decode; 0: none")


class AugmentSection(StrictModel):
    """Random changes of a training image; all off gives the same crop as inference."""

    crop_scale: tuple[float, float] = Field(default=(1.0, 1.0), description="area fraction of a random resized crop")
    crop_ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="width by height of a crop")
    shift: int = Field(default=0, ge=0, description="random shift by up to so many pixels, edges repeated")
    flip: bool = Field(default=False, description="mirror half of the images; wrong where left and right matter")
    color_jitter: float = Field(default=0.0, ge=0.0, le=1.0, description="strength: brightness, contrast, saturation")
    grayscale: float = Field(default=0.0, ge=0.0, le=1.0, description="fraction of images that lose their color")
    invert: float = Field(default=0.0, ge=0.0, le=1.0, description="fraction of images that are inverted")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSection:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError("crop_scale is [low, high] with 0 < low <= high <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio is [low, high] with 0 < low <= high")
        return self


class ObjectiveSection(StrictModel):
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


class OptimizerSection(StrictModel):
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


class TrainSection(StrictModel):
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


class FinetuneSection(StrictModel):
    """The last step of a run that started from a model (`model.init`)."""

    interpolate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="save the weights so far between start (0) and end (1), after a comparison of 0, 0.1, ... 1; left "
        "out: the end, without a comparison",
    )


class TeacherSection(StrictModel):
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


class ValidationSection(StrictModel):
    every: int | None = Field(default=None, gt=0, description="steps between validations; left out: only at the end")
    retrieval_pairs: int = Field(default=5000, gt=1, description="at most so many held-out pairs")
    zero_shot: Annotated[list[str], AfterValidator(_local)] = Field(
        default_factory=list, description="folders of classification data sets"
    )
    datasets: Annotated[list[str], AfterValidator(_local)] = Field(
        default_factory=list, description="data sets as `cloob eval` takes them, labeled or captioned"
    )


class Recipe(StrictModel):
    """A whole recipe. `name` is also the model's."""

    name: str = Field(
        min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, `.`, `_`, `-`"
    )
    description: str = Field(default="", description="a sentence for the model card")
    seed: int = Field(default=0, ge=0, description="of the weights, the order and the augmentation")
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


def load_recipe(
    path: Path, overrides: list[str] | None = None, init: Callable[[str, str], ModelConfig] | None = None
) -> Recipe:
    """Read a recipe and apply overrides like `train.steps=200`.

    Args:
        init: gives the configuration of a `model.init`, with which the recipe is filled in, from the model's name and
            the recipe's. Without it a recipe that has one is checked and stays incomplete: it cannot be trained.

    Raises:
        RecipeError: no such file, not TOML, an unknown key (the nearest is named), a wrong type or value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}", _recipes_like(path)) from None
    except (ValueError, OSError) as problem:  # both parsers' errors are ValueErrors
        raise RecipeError(f"{path} is not a readable recipe: {problem}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is not a readable recipe: it holds no sections")
    _resolve_paths(data, path.parent)
    for override in overrides or []:
        _apply(data, override)
    _resolve_paths(data, Path())  # what an override set; absolute ones stay
    model = data.get("model")
    name = model.get("init") if isinstance(model, dict) else None
    if init is not None and isinstance(name, str) and name and "architecture" not in data["model"]:
        data = filled_in(data, init(name, str(data.get("name"))))
    return parse(Recipe, data, str(path), RecipeError)


def filled_in(data: dict[str, Any], init: ModelConfig) -> dict[str, Any]:
    """The keys of a recipe with `model.init`, those that it leaves out taken from that model's configuration."""

    def over(base: dict[str, Any], given: Any) -> Any:
        return base | given if isinstance(given, dict) else given or base

    base, model = init.model_dump(mode="json", exclude_none=True), dict(data["model"])
    for key in ("vision", "text", "preprocess"):
        model[key] = over(base[key], model.get(key))
    tokenizer = data.get("tokenizer", {"kind": "init"})
    if isinstance(tokenizer, dict) and tokenizer.get("kind") != "init" and isinstance(model["text"], dict):
        model["text"].pop("vocab_size", None)  # a new vocabulary has its own size
    model = {"embed_dim": base["embed_dim"], "templates": base["templates"]} | model
    own = {key: value for key, value in base.items() if key in {"inv_tau", "scale_hopfield"}}
    objective = over(own, data.get("objective"))
    return data | {"model": model, "tokenizer": tokenizer, "objective": objective}


def _recipes_like(path: Path) -> str:
    """A hint: the shipped recipe that was meant, or which there are."""
    shipped = assets.shipped_recipes()
    near = nearest(path.stem, shipped)
    return f"did you mean {near!r}?" if near else f"the shipped ones are {', '.join(shipped)}"


# (section, key) of every key that holds paths.
PATH_KEYS = (("data", "train"), ("data", "validation"), ("validation", "zero_shot"), ("validation", "datasets"))
# The same for names of models, which may be paths.
MODEL_KEYS = (("model", "init"), ("teacher", "model"))


def _resolve_paths(data: dict[str, Any], base: Path) -> None:
    def resolve(value: Any) -> Any:
        if isinstance(value, str) and value:
            return value if _ADDRESS.match(value) else os.path.abspath(base / Path(value).expanduser())
        return [resolve(item) for item in value] if isinstance(value, list) else value

    for section, key in PATH_KEYS:
        if isinstance(data.get(section), dict) and data[section].get(key) is not None:
            data[section][key] = resolve(data[section][key])
    for section, key in MODEL_KEYS:
        if isinstance(data.get(section), dict) and isinstance(value := data[section].get(key), str):
            data[section][key] = resolve(value) if _is_path(value) else value


def _is_path(model: str) -> bool:
    """True for the name of a model that is a path and not a zoo's (`registry.resolve.find_model` tells them apart)."""
    return model.startswith((".", "~")) or (("/" in model or "\\" in model) and not _ADDRESS.match(model))


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"--set {override}: not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path is a string
    target = data
    *sections, last = key.strip().split(".")
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: '{section}' is not a section")
    if text.strip():
        target[last] = value
    else:
        target.pop(last, None)  # `--set section.key=` takes a key out: its default holds
