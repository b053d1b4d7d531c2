"""The parts of open_clip's evaluation transform; its training transforms are only names here."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from PIL import Image

from torchvision.transforms.functional import to_tensor


class InterpolationMode(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Compose:
    def __init__(self, transforms: list[Callable[..., Any]]) -> None:
        self.transforms = transforms

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value


class Resize:
    def __init__(self, size: int | tuple[int, int], interpolation: InterpolationMode) -> None:
        self.size, self.filter = size, Image.Resampling[interpolation.name]

    def __call__(self, image: Image.Image) -> Image.Image:
        if isinstance(self.size, tuple):
            return image.resize(self.size[::-1], self.filter)
        ratio = self.size / min(image.size)
        width, height = (self.size if side == min(image.size) else int(side * ratio) for side in image.size)
        return image.resize((width, height), self.filter)


class CenterCrop:
    def __init__(self, size: tuple[int, int]) -> None:
        self.height, self.width = size

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


class ToTensor:
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return to_tensor(image)


class Normalize:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std


class RandomResizedCrop:
    def __init__(self, *arguments: Any, **settings: Any) -> None: ...


ColorJitter = Grayscale = RandomResizedCrop
