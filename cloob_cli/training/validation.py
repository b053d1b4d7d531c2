"""Scores on data that the model is not trained on, while it trains: those of `cloob eval`, and the covariance's rank.

Crops are kept between two validations; embeddings are not, as the weights are others each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cloob_cli.core.accuracy import class_weights
from cloob_cli.core.geometry import covariance_rank
from cloob_cli.core.model import CloobModel
from cloob_cli.core.token_rows import cut_to_longest
from cloob_cli.core.zero_shot import class_embeddings
from cloob_cli.data.captioned_images import CaptionedSet
from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.labeled_set import ClassificationSet
from cloob_cli.data.preprocess import Preprocess, normalize
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import Failure, ImageError
from cloob_cli.evaluation.evaluate import Asked, open_data
from cloob_cli.evaluation.retrieval import scores as retrieval_scores
from cloob_cli.evaluation.zero_shot import classify
from cloob_cli.parallel import core_count, map_in_order
from cloob_cli.recipe import ValidationSection
from cloob_cli.training.data_split import HeldOut

_BATCH = 256
_KEEP_BYTES = 1 << 30  # crops of a set stay in memory between two validations up to this size


class ImageCollection(Protocol):
    """A numbered collection of images; `image` raises ImageError for one that cannot be read."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image: ...


class ImageCrops:
    """The model's input images of a collection in batches, kept in memory where they are small together."""

    def __init__(self, images: ImageCollection, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess
        self.unreadable: dict[int, str] = {}
        size = 3 * preprocess.image_size**2
        self._kept: dict[int, np.ndarray] | None = {} if len(images) * size <= _KEEP_BYTES else None

    def batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """(indices, uint8 [b, H, W, 3]) over all readable images in order."""
        indices = range(len(self.images))
        with closing(map_in_order(self._crop, indices, threads=min(8, core_count()), ahead=_BATCH)) as results:
            crops = enumerate(results)
            while batch := list(islice(crops, _BATCH)):
                readable = {index: crop for index, crop in batch if crop is not None}
                if readable:
                    yield list(readable), torch.from_numpy(np.stack(list(readable.values())))

    def _crop(self, index: int) -> np.ndarray | None:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        if index in self.unreadable:
            return None
        try:
            crop = self.preprocess.crop(self.images.image(index))
        except ImageError as problem:
            self.unreadable[index] = problem.message
            return None
        if self._kept is not None:
            self._kept[index] = crop
        return crop


def open_sets(section: ValidationSection) -> list[ClassificationSet | CaptionedSet]:
    """The data sets that a run is validated on, labeled or captioned.

    Raises:
        DataError: one of them cannot be opened.
    """
    labeled: list[ClassificationSet | CaptionedSet] = [
        open_classification_set(Path(name)) for name in section.zero_shot
    ]
    return labeled + [open_data(Path(name), Asked()) for name in section.datasets]


class Validator:
    """Everything that a run is validated on, held-out pairs and labeled sets; run as often as asked."""

    def __init__(
        self,
        held_out: HeldOut | None,
        sets: Sequence[ClassificationSet | CaptionedSet],
        preprocess: Preprocess,
        tokenizer: Tokenizer,
    ) -> None:
        self.tokenizer = tokenizer
        self.held_out = held_out if held_out is not None and len(held_out) > 1 else None
        self._pairs = ImageCrops(self.held_out, preprocess) if self.held_out else None
        self._sets = [(one, ImageCrops(one, preprocess)) for one in sets]

    def __bool__(self) -> bool:
        return self._pairs is not None or bool(self._sets)

    def run(
        self, model: CloobModel, autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> dict[str, float]:
        """The scores of `model` as it is, by name; fractions are in [0, 1]. The model's mode is restored."""
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), autocast():
                scores = self._retrieval(model)
                for one, crops in self._sets:
                    if isinstance(one, CaptionedSet):
                        scores |= self._captioned(model, one, crops)
                    else:
                        scores |= self._zero_shot(model, one, crops)
        finally:
            model.train(was_training)
        top1 = [value for name, value in scores.items() if name.startswith("zero_shot/") and name.endswith("/top1")]
        return scores | ({"zero_shot/mean/top1": fmean(top1)} if top1 else {})

    def unreadable(self) -> list[Failure]:
        """Every image that could not be read so far."""
        found = []
        if self._pairs is not None and self.held_out is not None:
            found += [Failure(self.held_out.name(i), reason) for i, reason in sorted(self._pairs.unreadable.items())]
        for one, crops in self._sets:
            found += [Failure(f"{one.name}[{i}]", reason) for i, reason in sorted(crops.unreadable.items())]
        return found

    def _retrieval(self, model: CloobModel) -> dict[str, float]:
        if self._pairs is None or self.held_out is None:
            return {}
        indices, images = _embed_images(model, self._pairs)
        if len(indices) < 2:
            return {}
        captions = [[self.held_out.caption(i)] for i in indices]
        scores, texts = _recalls(model, self.tokenizer, images, captions, "retrieval")
        scores["covariance_rank/image"] = float(covariance_rank(images.cpu()))
        scores["covariance_rank/text"] = float(covariance_rank(texts.cpu()))
        return scores

    def _captioned(self, model: CloobModel, one: CaptionedSet, crops: ImageCrops) -> dict[str, float]:
        indices, images = _embed_images(model, crops)
        if len(indices) < 2:
            return {}
        captions = [one.captions[i] for i in indices]
        return _recalls(model, self.tokenizer, images, captions, f"retrieval/{one.name}")[0]

    def _zero_shot(self, model: CloobModel, one: ClassificationSet, crops: ImageCrops) -> dict[str, float]:
        device = model.logit_scale.device
        names = [[name] for name in one.classes]
        text = model.config.text
        classes = class_embeddings(model.encode_text, self.tokenizer, names, one.templates, device=device, text=text)
        indices, images = _embed_images(model, crops)
        if not indices:
            return {}
        labels = torch.tensor([one.labels[i] for i in indices], device=images.device)
        found = classify(images, classes, labels)
        scores = {f"top{k}": float(found.top(k).double().mean()) for k in (1, 5)}
        weights = class_weights(found.labels)
        scores["mean_per_class_recall"] = float((weights * found.top(1)).sum() / weights.sum())
        return {f"zero_shot/{one.name}/{name}": value for name, value in scores.items()}


def _recalls(
    model: CloobModel, tokenizer: Tokenizer, images: Tensor, captions: list[list[str]], prefix: str
) -> tuple[dict[str, float], Tensor]:
    """Recall in both directions by names in metrics.jsonl, and the embeddings of the captions."""
    texts = _embed_texts(model, tokenizer, [text for row in captions for text in row])
    owners = torch.tensor([image for image, row in enumerate(captions) for _ in row], device=images.device)
    found = retrieval_scores(images, texts, owners, 0)[0]
    directions = {"text": "image_to_text", "image": "text_to_image"}  # by what is looked for
    scores = {}
    for kind, direction in directions.items():
        for k in (1, 5, 10):
            scores[f"{prefix}/{direction}/recall_{k}"] = found[f"{kind}_retrieval_recall@{k}"]
    return scores, texts


def _embed_images(model: CloobModel, crops: ImageCrops) -> tuple[list[int], Tensor]:
    device = model.logit_scale.device
    indices: list[int] = []
    embeddings = [torch.empty(0, model.config.embed_dim, device=device)]
    for numbers, pixels in crops.batches():
        indices += numbers
        embeddings.append(model.encode_image(normalize(pixels.to(device), model.config.preprocess)).float())
    return indices, torch.cat(embeddings)


def _embed_texts(model: CloobModel, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    device = model.logit_scale.device
    parts = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    rows = (cut_to_longest(tokenizer(part), model.config.text) for part in parts)
    return torch.cat([model.encode_text(tokens.to(device)).float() for tokens in rows])
