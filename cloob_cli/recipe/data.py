"""Sections of a recipe: the training pairs, their random changes, and the data of validation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cloob_cli.strict_model import FiniteModel

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # s3://bucket/..., https://...


def local_paths(value: str | list[str] | None) -> str | list[str] | None:
    for path in [value] if isinstance(value, str) else value or []:
        if not path.strip():
            raise ValueError("the path is empty; leave the key out instead")
        if ADDRESS.match(path):
            raise ValueError(f"{path} is an address; data are read from this machine's folders: copy or mount it")
    return value


class DataSection(FiniteModel):
    """The training pairs. `train` is a folder, a file or a pattern like `data/{00000..00099}.tar`, or a list."""

    train: Annotated[str | list[str], AfterValidator(local_paths)] = Field(description="the training pairs")
    format: Literal["auto", "parquet", "folder", "csv", "webdataset"] = Field(
        default="auto", description="auto: found out from what is there"
    )
    image_key: str | None = Field(default=None, description="column of the image (left out: found by name)")
    caption_key: str | None = Field(default=None, description="column of the caption (left out: found by name)")
    separator: str | None = Field(default=None, description="of a CSV file (left out: found out)")
    validation: Annotated[str | list[str] | None, AfterValidator(local_paths)] = Field(
        default=None, description="a source of its own, like train"
    )
    validation_fraction: float = Field(
        default=0.0, ge=0.0, lt=0.5, description="else: the fraction of train to hold out"
    )
    in_memory: bool | Literal["auto"] = Field(default="auto", description="keep decoded images (uint8) in memory")
    workers: int | Literal["auto"] = Field(default="auto", description="processes that read and decode; 0: none")


class AugmentSection(FiniteModel):
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


class ValidationSection(FiniteModel):
    every: int | None = Field(default=None, gt=0, description="steps between validations; left out: only at the end")
    retrieval_pairs: int = Field(default=5000, gt=1, description="at most so many held-out pairs")
    zero_shot: Annotated[list[str], AfterValidator(local_paths)] = Field(
        default_factory=list, description="folders of classification data sets"
    )
    datasets: Annotated[list[str], AfterValidator(local_paths)] = Field(
        default_factory=list, description="data sets as `cloob eval` takes them, labeled or captioned"
    )
