"""The pairs of a run: opened, split into those to train on and those held out, and compared with a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from cloob_cli.data.pairs import PairSource, open_pairs
from cloob_cli.data.sample_order import hold_out
from cloob_cli.data.sources.data_fingerprint import changes, from_json, to_json
from cloob_cli.errors import DataError, Failure, ImageError, UsageError
from cloob_cli.recipe import DataSection
from cloob_cli.text_format import counted

_SHOWN = 5  # changes that a message names


@dataclass(frozen=True)
class HeldOut:
    """The held-out pairs of a source, as a numbered collection."""

    source: PairSource
    indices: np.ndarray  # int64 [N]
    _captions: dict[int, str] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        """The image of a pair; ImageError where it cannot be read, and where the pair has no caption to go with it."""
        captions = self.source.captions(int(self.indices[index]))
        if not captions:
            raise ImageError("no caption")
        self._captions[index] = captions[0]
        return self.source.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def caption(self, index: int) -> str:
        """The first caption of a pair whose image was read; retrieval uses one an image."""
        return self._captions[index]


@dataclass(frozen=True)
class DataSplit:
    """The pairs of a run: a source with the indices to train on, and those that are held out, if any."""

    source: PairSource
    indices: np.ndarray  # int64
    held_out: HeldOut | None

    @property
    def unusable(self) -> list[Failure]:
        """All that lies with the pairs of either source and is not among them."""
        other = self.held_out.source if self.held_out else self.source
        return self.source.unusable + (other.unusable if other is not self.source else [])

    def captions(self) -> Iterator[str]:
        """All captions of the pairs to train on; those that cannot be read are left out."""
        for index in self.indices.tolist():
            try:
                yield from self.source.captions(index)
            except ImageError:
                continue  # its turn as a skipped pair comes when it is to be trained on

    def some_captions(self, most: int) -> list[str]:
        """The first captions of at most so many pairs to train on, evenly spread."""
        found = []
        for index in _spread(self.indices, most).tolist():
            try:
                found += self.source.captions(index)[:1]
            except ImageError:
                continue
        return found

    def parts(self) -> dict[str, Any]:
        """The parts of the training data, and of held-out pairs with a source of their own, as a checkpoint keeps them.

        JSON values. `compare_parts` tells whether they are still the same.
        """
        made = {"train": to_json(self.source.parts())}
        if self.held_out is not None and self.held_out.source is not self.source:
            made["validation"] = to_json(self.held_out.source.parts())
        return made


def open_data(section: DataSection, retrieval_pairs: int) -> DataSplit:
    """Open the sources and split off at most `retrieval_pairs` held-out pairs for validation.

    Raises:
        DataError: a source is missing, empty or has other keys.
    """
    source = open_pairs(section)
    if section.validation is not None:
        other = open_pairs(section, section.validation)
        if len(other) < 2:
            raise DataError(f"data.validation holds {counted(len(other), 'pair')}, which is too few")
        held_out = _spread(np.arange(len(other)), retrieval_pairs)
        return DataSplit(source, np.arange(len(source)), HeldOut(other, held_out))
    # The same pairs are held out whatever the recipe's seed, so that runs can be compared.
    indices, held_out = hold_out(len(source), section.validation_fraction)
    if section.validation_fraction and len(held_out) < 2:
        raise DataError(
            f"data.validation_fraction holds out {len(held_out)} of {counted(len(source), 'pair')}, which is too few",
            "two are needed; --set data.validation_fraction=0 holds out none",
        )
    return DataSplit(source, indices, HeldOut(source, _spread(held_out, retrieval_pairs)) if len(held_out) else None)


def compare_parts(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """Notices about data that have changed since the checkpoint of `step`; none where they have not.

    Args:
        before, now: as `DataSplit.parts` gives them.

    Raises:
        UsageError: the training data have changed: their pairs would come in another order, some of them twice.
    """
    if not before:
        return [f"the checkpoint of step {step} does not say what its data were; whether they changed is not known"]
    train, held_out = (_changes(before.get(name, []), now.get(name, [])) for name in ("train", "validation"))
    if train:
        raise UsageError(
            f"the training data have changed since step {step}: {train}",
            "go on with the same data, wherever they lie now (data.train), or start anew with another --out",
        )
    return [f"the validation data have changed since step {step}: {held_out}"] if held_out else []


def _changes(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    found = changes(from_json(before), from_json(now))
    more = f"; and {counted(len(found) - _SHOWN, 'more change')}" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _spread(indices: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the indices, evenly spread."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]
