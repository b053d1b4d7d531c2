"""Zero-shot classification: images and labels in, one row for each image out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from cloob_cli.core.model import CloobModel
from cloob_cli.core.zero_shot import class_embeddings
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.errors import Failure
from cloob_cli.inference.answers import Answers
from cloob_cli.inference.encoding import device_of, encode_images
from cloob_cli.inference.image_batches import OnImage, image_batches
from cloob_cli.inference.labels import Label
from cloob_cli.inference.prefetch import prefetched
from cloob_cli.inference.result_rows import Classified
from cloob_cli.inference.scoring import AnyScorer

# Called while labels are encoded: with the number of their texts that are done, and of all.
OnTexts = Callable[[int, int], None]


@dataclass
class ClassifiedBatch:
    """Rows of consecutive images, and the images among them that could not be read.

    `thumbnails` holds one for each row where they were asked for.
    """

    rows: list[Classified]
    failures: list[Failure] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


def classify(
    model: CloobModel,
    paths: Iterable[Path | Failure],
    scorer: AnyScorer,
    answers: Answers,
    *,
    top_k: int = 1,
    batch_size: int = 64,
    workers: int | None = None,
    exact: bool = False,
    memory_budget: int | None = None,
    on_image: OnImage | None = None,
    with_thumbnails: bool = False,
) -> Generator[ClassifiedBatch]:
    """Classify images in their order; unreadable ones are failures of the batch they would have stood in.

    `scorer` scores embeddings for every label, and `answers` makes rows of the scores. Where `top_k` exceeds the number
    of labels, all are given. Of equal scores the label that stands first wins. `on_image` is called for each image.
    """
    preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)
    batches = image_batches(
        paths,
        preprocess,
        batch_size=batch_size,
        workers=workers,
        exact=exact,
        memory_budget=memory_budget,
        on_image=on_image,
        with_thumbnails=with_thumbnails,
    )
    with closing(batches):
        for batch in prefetched(batches, device_of(model)):
            rows = []
            if batch.paths:
                embeddings = encode_images(model, batch.pixels)
                rows = answers.rows(batch.paths, embeddings, scorer(embeddings), top_k)
            yield ClassifiedBatch(rows, batch.failures, batch.thumbnails)


def encode_labels(
    model: CloobModel,
    labels: Sequence[Label],
    templates: Sequence[str],
    batch_size: int = 64,
    on_texts: OnTexts | None = None,
) -> Tensor:
    """One embedding a label, unit-norm float32 [C, D] on the CPU: of all its names in all templates."""
    total = sum(len(label.names) for label in labels) * len(templates)
    done = 0

    def encode(tokens: Tensor) -> Tensor:
        nonlocal done
        embeddings = model.encode_text(tokens)
        done += len(tokens)
        if on_texts:
            on_texts(done, total)
        return embeddings

    assert model.tokenize is not None
    names = [label.names for label in labels]
    return class_embeddings(
        encode, model.tokenize, names, templates, batch_size, device_of(model), model.config.text
    ).cpu()
