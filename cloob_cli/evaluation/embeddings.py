"""The embeddings of a data set by a model, each computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cloob_cli import launch, process_exchange
from cloob_cli.core.model import CloobModel
from cloob_cli.core.token_rows import cut_to_longest
from cloob_cli.core.zero_shot import class_embeddings
from cloob_cli.data.content_digest import digest_of_images
from cloob_cli.data.preprocess import Preprocess, normalize
from cloob_cli.errors import DataError, Failure, ImageError, one_line
from cloob_cli.evaluation.embedding_cache import Kept, Store
from cloob_cli.parallel import core_count, map_in_order

OnImage = Callable[[Failure | None], None]  # called for every image in order: with None, or with why it was skipped


_Part = tuple[Tensor, list[int], list[tuple[int, str]]]  # embeddings, their numbers, numbers with reasons to skip


class ImageSet(Protocol):
    """A numbered collection of images; `image` raises ImageError for one that cannot be read."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image: ...
    def image_name(self, index: int) -> str: ...
    def places(self) -> list[tuple[Path, int]]: ...


@dataclass(frozen=True)
class Embedded:
    """Images that could be read and what was made of them.

    Attributes:
        embeddings: unit-norm float32 [M, D], on the CPU.
        indices: their numbers in the data set, ascending.
        failures: those that were skipped.
    """

    embeddings: Tensor
    indices: list[int]
    failures: list[Failure] = field(default_factory=list)


class Embedder:
    """A model that embeds data sets, and looks first whether it did so before.

    Args:
        identity: what tells this model's embeddings from another's: the hash of its weights.
        folder: where embeddings are kept; None keeps none.
        batch_size: images or texts in one pass.
        workers: threads that read and decode; None picks by the number of cores.
    """

    def __init__(
        self,
        model: CloobModel,
        identity: str,
        folder: Path | None = None,
        batch_size: int = 64,
        workers: int | None = None,
    ) -> None:
        self.model, self._batch_size = model, batch_size
        self._workers = min(8, core_count()) if workers is None else workers
        self._store = Store(folder)
        config = model.config
        self._key = {
            "weights": identity,
            "image_size": config.vision.image_size,
            "preprocess": config.preprocess.model_dump(mode="json"),
            "tokenizer": config.tokenizer.model_dump(mode="json"),
            "context": config.text.context_length,
            "precision": str(model.logit_scale.dtype),
            "device": self.device.type,
        }

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def images(self, images: ImageSet, chosen: Sequence[int], on_image: OnImage | None = None) -> Embedded:
        """Embed the images of the numbers `chosen`; unreadable ones are failures.

        Raises:
            DataError: not one of them can be read.
        """
        key = self._key | {"images": digest_of_images(images.places()), "chosen": _digest([*map(str, chosen)])}
        kept = self._store.read(key)
        if all(process_exchange.gathered(kept is not None)) and kept is not None:
            failures = [Failure(images.image_name(index), why) for index, why in json.loads(kept.notes["failures"])]
            return Embedded(kept.tensors["embeddings"], kept.tensors["indices"].tolist(), failures)
        own = list(chosen)[launch.rank() :: launch.count()]
        embeddings, indices, reasons = _together(process_exchange.gathered(self._compute(images, own, on_image)))
        if not indices:
            what = f"not one of the {len(chosen):,} images can" if len(chosen) != 1 else "the only image cannot"
            raise DataError(f"{what} be read", f"the first: {reasons[0][1]}")
        tensors = {"embeddings": embeddings, "indices": torch.tensor(indices)}
        if launch.rank() == 0:
            self._store.write(key, Kept(tensors, {"failures": json.dumps(reasons)}))
        failures = [Failure(images.image_name(index), why) for index, why in reasons]
        return Embedded(embeddings, indices, failures)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: unit-norm float32 [T, D] on the CPU. Equal texts get equal embeddings, to the bit."""
        distinct = list(dict.fromkeys(texts))
        key = self._key | {"texts": _digest(distinct)}
        kept = self._store.read(key)
        if kept is None:
            with torch.inference_mode():
                parts = [self._text_batch(part) for part in _batches(distinct, self._batch_size)]
            kept = Kept({"embeddings": torch.cat(parts)}, {})
            self._store.write(key, kept)
        place = {text: index for index, text in enumerate(distinct)}
        return kept.tensors["embeddings"][torch.tensor([place[text] for text in texts])]

    def classes(self, names: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
        """Embed classes (`core.zero_shot.class_embeddings`): unit-norm float32 [C, D] on the CPU."""
        key = self._key | {"classes": [list(row) for row in names], "templates": list(templates)}
        kept = self._store.read(key)
        if kept is None:
            model = self.model
            assert model.tokenize is not None
            with torch.inference_mode():
                embeddings = class_embeddings(
                    model.encode_text, model.tokenize, names, templates, 256, self.device, model.config.text
                )
            kept = Kept({"embeddings": embeddings.cpu()}, {})
            self._store.write(key, kept)
        return kept.tensors["embeddings"]

    def _compute(self, images: ImageSet, chosen: Sequence[int], on_image: OnImage | None) -> _Part:
        preprocess = Preprocess(self.model.config.vision.image_size, self.model.config.preprocess)

        def crop(index: int) -> np.ndarray | str:
            try:
                return preprocess.crop(images.image(index))
            except ImageError as problem:
                return problem.message
            except Exception as problem:  # one odd image must not end a run over fifty thousand
                return one_line(problem)

        indices: list[int] = []
        reasons: list[tuple[int, str]] = []
        parts: list[Tensor] = [torch.empty(0, self.model.config.embed_dim)]
        waiting: list[np.ndarray] = []
        ahead = self._batch_size + self._workers
        with closing(map_in_order(crop, chosen, self._workers, ahead)) as crops:
            for index, pixels in zip(chosen, crops, strict=True):
                if isinstance(pixels, str):
                    reasons.append((index, pixels))
                else:
                    indices.append(index)
                    waiting.append(pixels)
                if on_image:
                    on_image(None if not isinstance(pixels, str) else Failure(images.image_name(index), pixels))
                if len(waiting) == self._batch_size:
                    parts.append(self._image_batch(waiting))
                    waiting = []
        if waiting:
            parts.append(self._image_batch(waiting))
        return torch.cat(parts), indices, reasons

    def _image_batch(self, crops: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(crops)).to(self.device)
        with torch.inference_mode():
            return self.model.encode_image(normalize(pixels, self.model.config.preprocess)).float().cpu()

    def _text_batch(self, texts: list[str]) -> Tensor:
        assert self.model.tokenize is not None
        tokens = cut_to_longest(self.model.tokenize(texts), self.model.config.text)
        return self.model.encode_text(tokens.to(self.device)).float().cpu()


def _together(parts: Sequence[_Part]) -> _Part:
    """The parts of several processes in the order of the images."""
    if len(parts) == 1:
        return parts[0]
    embeddings = torch.cat([part[0] for part in parts])
    indices = [index for part in parts for index in part[1]]
    order = sorted(range(len(indices)), key=lambda place: indices[place])
    return embeddings[order], [indices[place] for place in order], sorted(why for part in parts for why in part[2])


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, size)):
        yield batch


def _digest(texts: Sequence[str]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()
