"""Sections of a recipe: the model, its architecture or the one to start from, and its vocabulary."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cloob_cli.core.model_config import ARCHITECTURES, PreprocessConfig, TextConfig, TokenizerConfig, VisionConfig
from cloob_cli.strict_model import FiniteModel, nearest


class TextSection(TextConfig):
    """The text tower, a transformer; its vocabulary is the tokenizer's."""

    # A model needs the number, its recipe does not.
    vocab_size: int | None = Field(  # type: ignore[assignment]
        default=None, gt=0, description="entries of the vocabulary; left out: the tokenizer's, and it must equal that"
    )


class ModelSection(FiniteModel):
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


class TokenizerSection(FiniteModel):
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
