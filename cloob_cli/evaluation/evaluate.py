"""Evaluate one model on one data set: open it as its task needs, choose the images, and score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cloob_cli.data.captioned_images import CaptionedSet, is_benchmark_retrieval, open_captioned_set
from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.image_folder import suffixes
from cloob_cli.data.labeled_set import ClassificationSet
from cloob_cli.data.labeled_tables import LABEL_NAMES, parquet_columns, parquet_files
from cloob_cli.data.sources.columns import CAPTION_NAMES
from cloob_cli.data.sources.image_files import METADATA_NAMES, read_columns
from cloob_cli.errors import DataError
from cloob_cli.evaluation.class_names import Labels, class_texts
from cloob_cli.evaluation.embeddings import Embedder, OnImage
from cloob_cli.evaluation.linear_probe import few_shot, linear_probe
from cloob_cli.evaluation.results import LEARNING, Record, Task
from cloob_cli.evaluation.retrieval import retrieval
from cloob_cli.evaluation.zero_shot import zero_shot

DataSet = ClassificationSet | CaptionedSet


@dataclass(frozen=True)
class Asked:
    """The measurement that is asked for on a data set.

    Attributes:
        task: None: as the data set has labels or captions.
        split: the part of the data set that is scored; `train_split`: the part that a classifier learns from.
        templates: instead of the data set's own.
        labels: for each class its texts, instead of its name (class_names.py); `labels_file` is what errors call them.
        limit: so many images, evenly spaced; None: all.
        resamples: of the bootstrap.
    """

    task: Task | None = None
    split: str = "test"
    train_split: str = "train"
    templates: list[str] | None = None
    labels: Labels | None = None
    labels_file: str = "the labels"
    limit: int | None = None
    resamples: int = 1000


def open_data(path: Path, asked: Asked) -> DataSet:
    """Open a data set in the form that the task needs.

    Raises:
        DataError: it cannot be opened so.
    """
    task = asked.task or ("retrieval" if _has_captions(path) else "zero-shot")
    if task == "retrieval":
        return open_captioned_set(path, asked.split)
    opened = open_classification_set(path, asked.split)
    if asked.labels is not None:
        opened = replace(opened, synonyms=class_texts(opened.classes, asked.labels, asked.labels_file))
    return replace(opened, templates=asked.templates) if asked.templates else opened


def open_train(path: Path, asked: Asked) -> ClassificationSet | None:
    """The images that a classifier learns from; None for a task that needs none.

    Raises:
        DataError: there is no such split.
    """
    if asked.task not in LEARNING:
        return None
    if asked.split == asked.train_split:
        raise DataError(f"{path}: the split '{asked.split}' is both learned from and scored", "name another --split")
    return open_classification_set(path, asked.train_split)


def task_of(data: DataSet, asked: Asked) -> Task:
    """The task that `evaluate` carries out."""
    return "retrieval" if isinstance(data, CaptionedSet) else asked.task or "zero-shot"


def chosen_images(data: DataSet, limit: int | None) -> list[int]:
    """The numbers of the images that are scored: all, or `limit` of them, evenly spaced."""
    if limit is None or limit >= len(data):
        return list(range(len(data)))
    return [index * len(data) // limit for index in range(limit)]


def evaluate(
    embedder: Embedder,
    model_name: str,
    data: DataSet,
    asked: Asked,
    on_image: OnImage | None = None,
    train: ClassificationSet | None = None,
) -> Record:
    """Score a model on an opened data set.

    Args:
        train: the images to learn from (`open_train`).

    Raises:
        DataError: not one image can be read.
    """
    chosen = chosen_images(data, asked.limit)
    if isinstance(data, CaptionedSet):
        record = retrieval(embedder, data, chosen, model_name, asked.resamples, on_image)
    elif train is not None:
        learn = linear_probe if asked.task == "linear-probe" else few_shot
        record = learn(embedder, data, train, chosen, model_name, asked.resamples, on_image)
        record.settings["train_split"] = asked.train_split
    else:
        record = zero_shot(embedder, data, chosen, model_name, asked.resamples, on_image)
    record.settings |= {"split": asked.split} | ({"limit": asked.limit} if asked.limit else {})
    return record


def _has_captions(path: Path) -> bool:
    """True where a data set has captions and no labels."""
    if not path.exists():
        raise DataError(f"no data set at {path}")
    if (path / "classnames.txt").is_file() or (path / "dataset_type.txt").is_file():
        return is_benchmark_retrieval(path)
    if path.is_file():
        parquet = path.suffix.lower() in {".parquet", ".pq"}
        if path.suffix.lower() == ".tar":
            return True
        return _captions_in(parquet_columns(path) if parquet else list(read_columns(path)))
    if any((path / name).is_file() for name in METADATA_NAMES) or any(path.glob("*.tar")):
        return True
    if files := parquet_files(path):
        return _captions_in(parquet_columns(files[0]))
    return any(file.with_suffix(".txt").is_file() for file in path.iterdir() if file.suffix.lower() in suffixes())


def _captions_in(columns: list[str]) -> bool:
    lower = {column.strip().lower() for column in columns}
    return not lower & set(LABEL_NAMES) or bool(lower & set(CAPTION_NAMES) - set(LABEL_NAMES))
