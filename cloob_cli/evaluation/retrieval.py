"""Image-text retrieval on a captioned data set, both ways, with one or more captions an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cloob_cli.core.bootstrap import mean_intervals
from cloob_cli.core.retrieval_recall import retrieval_places
from cloob_cli.data.captioned_images import CaptionedSet
from cloob_cli.evaluation.embeddings import Embedder, OnImage
from cloob_cli.evaluation.results import Record

_KS = (1, 5, 10)


def retrieval(
    embedder: Embedder,
    data: CaptionedSet,
    chosen: Sequence[int],
    model_name: str,
    resamples: int,
    on_image: OnImage | None = None,
) -> Record:
    """Score a model by how often an image finds one of its captions among all, and a caption its image.

    The metrics are CLIP_benchmark's: `image_retrieval_recall@k` asks with texts for images, `text_retrieval_recall@k`
    with images for texts. The bootstrap draws images with all their captions.

    Args:
        chosen: numbers of the images that count.
        resamples: of the bootstrap; 0 gives no intervals.

    Raises:
        DataError: no image can be read.
    """
    images = embedder.images(data, chosen, on_image)
    captions = [data.captions[index] for index in images.indices]
    owners = torch.tensor([image for image, texts in enumerate(captions) for _ in texts])
    texts = embedder.texts([text for texts in captions for text in texts])
    metrics, bounds, ties = scores(images.embeddings, texts, owners, resamples)
    counts = {"images": len(captions), "texts": len(owners)}
    failures = [*images.failures, *data.left_out]
    return Record(data.name, model_name, "retrieval", metrics, bounds, counts, ties, failures=failures)


def scores(
    images: Tensor, texts: Tensor, owners: Tensor, resamples: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]], int]:
    """(metrics, their intervals, queries with ties) of embeddings, as `core.recall.retrieval_places` takes them."""
    to_text, to_image = retrieval_places(images, texts, owners, max(_KS))
    names = [f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in _KS]
    captions = torch.bincount(owners.cpu(), minlength=len(images)).double()
    ones = torch.ones_like(captions)
    measures = [(_by_image(to_image.hits(k), owners, captions), captions) for k in _KS]
    measures += [(to_text.hits(k).double().cpu(), ones) for k in _KS]
    values = [float((hits * share).sum() / share.sum()) for hits, share in measures]
    hits, shares = (torch.stack(column) for column in zip(*measures, strict=True))
    ends = mean_intervals(hits, shares, resamples) if resamples else []
    return dict(zip(names, values, strict=True)), dict(zip(names, ends, strict=False)), to_text.ties + to_image.ties


def _by_image(hit: Tensor, owners: Tensor, captions: Tensor) -> Tensor:
    """The fraction of each image's captions that hit, float64 [N]."""
    return torch.bincount(owners.cpu(), hit.double().cpu(), minlength=len(captions)) / captions
