"""Names of data sets that CLIP_benchmark imports and never uses for its webdatasets."""

from __future__ import annotations

from typing import Any


class VisionDataset:
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        raise NotImplementedError


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return VisionDataset
