"""Scoring for `cloob classify`: label texts, examples and reference patterns become what images are scored by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console
from cloob_cli.errors import DataError
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    from torch import Tensor

    from cloob_cli.commands.inference_run import Work
    from cloob_cli.core.model import CloobModel
    from cloob_cli.errors import Failure
    from cloob_cli.inference.labeled_images import LabeledImages
    from cloob_cli.inference.labels import Label
    from cloob_cli.inference.scoring import AnyScorer


@dataclass(frozen=True)
class Decoding:
    """Options of reading and encoding images."""

    batch_size: int
    workers: int | None
    exact: bool
    memory_budget: int | None


def build_scorer(
    model: CloobModel,
    weights_sha256: str,
    labels: Sequence[Label],
    templates: Sequence[str],
    examples: LabeledImages | None,
    decoding: Decoding,
    work: Work,
) -> tuple[AnyScorer, Tensor]:
    """Encode the labels' texts where no earlier run has, and the examples where there are some.

    Returns:
        The scorer, and the patterns that count as known: unit-norm [N, D].

    Raises:
        DataError: not one example can be read.
    """
    import torch

    from cloob_cli.inference.label_cache import recall_labels
    from cloob_cli.inference.scoring import ExampleScorer, Scorer
    from cloob_cli.registry import paths

    texts = recall_labels(
        paths.label_embeddings_folder(),
        model,
        weights_sha256,
        labels,
        templates,
        decoding.batch_size,
        lambda done, total: work.prepared("label texts", done, total),
    )
    if examples is None:
        return Scorer(texts, model.config.inv_tau), texts

    def tell(failure: Failure | None) -> None:
        if failure is not None:
            work.failed(failure)

    rows, numbers = embed_labeled(model, examples, decoding, tell)
    rows, numbers = rows[numbers >= 0], numbers[numbers >= 0]
    if not len(rows):
        raise DataError("not one example can be read")
    scorer = ExampleScorer(texts, rows, numbers)
    choice = scorer.choice
    count = len(numbers.unique())
    weight = "without texts" if choice.gap == -float("inf") else f"texts {choice.gap:+.2f}"
    console.info(
        f"{counted(len(rows), 'example')} of {counted(count, 'label')}; retrieval with beta {choice.beta:g}, {weight}"
    )
    return scorer, torch.cat([texts, rows])


def embed_labeled(
    model: CloobModel, images: LabeledImages, decoding: Decoding, on_image: Callable[[Failure | None], None]
) -> tuple[Tensor, Tensor]:
    """Embed labeled images: unit-norm [N, D], and the int64 [N] numbers of their labels, of those that can be read."""
    import torch

    from cloob_cli.inference.embed import embed_images
    from cloob_cli.path_text import path_text

    number_of = dict(zip(map(path_text, images.paths), images.labels, strict=True))
    rows, numbers = [torch.zeros(0, model.config.embed_dim)], []

    batches = embed_images(
        model,
        images.paths,
        batch_size=decoding.batch_size,
        workers=decoding.workers,
        exact=decoding.exact,
        memory_budget=decoding.memory_budget,
        on_image=on_image,
    )
    with closing(batches):
        for batch in batches:
            if batch.embeddings is not None:
                rows.append(batch.embeddings)
                numbers += [number_of[name] for name in batch.names]
    return torch.cat(rows), torch.tensor(numbers, dtype=torch.int64)


def fingerprint(images: LabeledImages) -> str:
    """A hash of labels, names and sizes of images, to know the same examples again."""
    lines = sorted(
        f"{number} {path.name!r} {path.stat().st_size if path.is_file() else -1}"
        for path, number in zip(images.paths, images.labels, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def read_examples(source: Path, labels: Sequence[Label], option: str) -> LabeledImages:
    """Read labeled images; one notice names folders that are no label."""
    from cloob_cli.inference.labeled_images import read_labeled

    found = read_labeled(source, labels)
    if found.others:
        shown = ", ".join(f"'{name}'" for name in list(found.others)[:5])
        more = f" and {len(found.others) - 5} more" if len(found.others) > 5 else ""
        count = sum(number < 0 for number in found.labels)
        which = "which is no label" if len(found.others) == 1 else "which are no labels"
        use = "count as unknown" if option == "--calibrate" else "are left out"
        if count == 1:
            use = "counts as unknown" if option == "--calibrate" else "is left out"
        console.info(f"{option}: {counted(count, 'image')} of {shown}{more}, {which}, {use}")
    return found


def known_patterns(reference: Path, made: Mapping[str, str], model: CloobModel) -> Tensor:
    """Read the embeddings of `--reference`; a notice where they do not say which model made them.

    Args:
        made: how this command's embeddings are made, as in the metadata of results.

    Raises:
        DataError: they cannot be read, or not be compared with those.
    """
    from cloob_cli.commands.folder_index import tell_unknown_model
    from cloob_cli.inference.reference_patterns import read_reference

    patterns, is_told = read_reference(reference, made, model.config.embed_dim)
    if not is_told:
        tell_unknown_model(reference, made["model"])
    return patterns
