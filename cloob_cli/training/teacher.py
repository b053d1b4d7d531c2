"""A teacher: its embeddings of the training pairs, computed once, and the loss that draws a run's model towards them.

RUN/features/teacher.json says which teacher it is. A resumed run whose teacher's embeddings are all there needs no more
of the teacher, and one whose teacher has become another is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from cloob_cli.atomic_files import replacing
from cloob_cli.checkpoint.folder import open_model, read_config
from cloob_cli.core.distillation import TeacherProjection, embeddings_loss, joined, scores_loss, teacher_projection
from cloob_cli.core.model import CloobModel, unit_norm
from cloob_cli.data.batch import PairBatch
from cloob_cli.data.caption_tokens import caption_id
from cloob_cli.data.feature_cache import FeatureTable
from cloob_cli.data.loader import captions_or_none
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import CloobError, ModelFolderError, RecipeError, UsageError
from cloob_cli.recipe import Recipe, TeacherSection
from cloob_cli.training.checkpoints import Progress
from cloob_cli.training.data_split import DataSplit
from cloob_cli.training.events import Event, Preparing
from cloob_cli.training.frozen_features import ImageWork, TextWork, data_key, hash_of, kept_table
from cloob_cli.training.initial_model import FindModel
from cloob_cli.training.interrupt import StopRequest
from cloob_cli.training.new_model import shown_name
from cloob_cli.training.processes import on_main

_FACTS = "teacher.json"
_AT_ONCE = 20_000  # captions that are tokenized together


@dataclass(frozen=True)
class Facts:
    """The facts of a teacher that a run depends on, besides its embeddings."""

    sha256: str
    embed_dim: int
    inv_tau: float


class Teacher:
    """The teacher of a run.

    Args:
        images: embeddings by the pair's index, float32 [T], unit norm.
        texts: by the caption's `caption_id`.
        embed_dim: D, the run's own model's.

    Attributes:
        projection: from D to T, trained with the model; None: the embeddings are compared as they are.
    """

    def __init__(
        self,
        section: TeacherSection,
        facts: Facts,
        images: FeatureTable,
        texts: FeatureTable,
        embed_dim: int,
        seed: int,
    ) -> None:
        self._section, self._facts, self._images, self._texts = section, facts, images, texts
        self.projection: TeacherProjection | None = None
        if section.projection:
            self.projection = teacher_projection(embed_dim, facts.embed_dim, seed)

    def embeddings(self, batch: PairBatch, device: torch.device) -> tuple[Tensor, Tensor]:
        """The teacher's embeddings of a batch's images [b, T] and captions [b, k, T]."""
        images = torch.from_numpy(self._images(batch.indices.numpy()))
        texts = torch.from_numpy(self._texts(batch.caption_ids.numpy()))
        return images.to(device, non_blocking=True), texts.to(device, non_blocking=True)

    def loss(
        self,
        images: Tensor,
        texts: Tensor,
        wanted: tuple[Tensor, Tensor],
        inv_tau: Tensor | float,
        group: torch.distributed.ProcessGroup | None,
    ) -> Tensor:
        """The weighted loss of embeddings [n, D] and [n, k, D] of this process, joined with those of the others.

        Args:
            wanted: what `embeddings` gave for them.
        """
        joint = joined([images.float(), texts.float(), *wanted], group)
        losses = [
            self._of_draw(joint[0], joint[1][:, k], joint[2], joint[3][:, k], inv_tau) for k in range(texts.shape[1])
        ]
        return self._section.weight * torch.stack(losses).mean()

    def _of_draw(
        self, images: Tensor, texts: Tensor, wanted_images: Tensor, wanted_texts: Tensor, inv_tau: Tensor | float
    ) -> Tensor:
        if self._section.kind == "scores":
            return scores_loss(images, texts, wanted_images, wanted_texts, inv_tau, self._facts.inv_tau)
        if self.projection is not None:
            images, texts = (
                unit_norm(linear(one))
                for linear, one in ((self.projection.image, images), (self.projection.text, texts))
            )
        return embeddings_loss(images, texts, wanted_images, wanted_texts)


def check_teacher(recipe: Recipe, folder: Path, find_model: FindModel) -> None:
    """Make sure that the recipe's teacher is there and fits, before anything is written; called in the main process.

    Raises:
        RecipeError: its embeddings have another width than the model's and nothing maps them.
        CloobError: what `find_model` and opening it raise, where `folder` does not have its embeddings either.
    """
    section, own = recipe.teacher, recipe.model.embed_dim
    if section is None:
        return
    try:
        width = _width_of(find_model(section.model))
    except CloobError:
        known = _known(folder)
        if known is None:
            raise
        width = known.embed_dim
    if section.kind == "embeddings" and not section.projection and width != own:
        raise RecipeError(
            f"the teacher's embeddings have {width} dimensions, the model's {own}",
            "map them (teacher.projection = true), or learn scores instead (teacher.kind = 'scores')",
        )


def _width_of(folder: Path) -> int:
    try:
        return read_config(folder).embed_dim
    except ModelFolderError:  # a form of another program
        return open_model(folder, "cpu").config.embed_dim


def open_teacher(
    recipe: Recipe,
    folder: Path,
    model: CloobModel,
    data: DataSplit,
    data_parts: dict[str, Any],
    tokenizer: Tokenizer,
    accelerator: Accelerator,
    progress: Progress,
    find_model: FindModel,
    stop: StopRequest,
) -> Generator[Event, None, Teacher | None]:
    """The recipe's teacher with its embeddings, computed where `folder` does not have them; None where there is none.

    Raises:
        UsageError: it is not the one that the run began with.
        CloobError: what `find_model` and opening it raise.
    """
    section = recipe.teacher
    if section is None:
        return None
    yield Preparing(f"opening the teacher {shown_name(section.model)}")
    known = on_main(lambda: _known(folder))
    opened: CloobModel | None = None
    try:
        opened = open_model(find_model(section.model), accelerator.device)
        facts = Facts(hash_of(opened.state_dict().values()), opened.config.embed_dim, float(opened.inv_tau))
    except CloobError:
        if known is None:
            raise
        facts = known
    if progress.step and known is not None and known.sha256 != facts.sha256:
        raise UsageError(
            f"the teacher {shown_name(section.model)} is not the one that the run of step {progress.step} has learned "
            "from",
            "start anew with another --out",
        )
    on_main(lambda: _write(folder, facts))
    key = {"weights": facts.sha256, "precision": progress.precision} | data_key(data, data_parts)
    texts = _texts(data, tokenizer)
    preprocess, device = Preprocess(1), accelerator.device
    if opened is not None:
        preprocess = Preprocess(opened.config.vision.image_size, opened.config.preprocess)
    text_config = (opened or model).config.text
    embed_image, embed_text, tokens = (
        (opened.encode_image, opened.encode_text, _tokens_of(opened, texts)) if opened else (_gone, _gone, _gone)
    )
    image_work = ImageWork(recipe, data, tokenizer, preprocess, embed_image, facts.embed_dim, device)
    images = yield from kept_table("the teacher's images", image_work, folder / "teacher-image", key, accelerator, stop)
    numbers = np.array(sorted(texts), dtype=np.int64)
    text_work = TextWork(numbers, tokens, text_config, embed_text, facts.embed_dim, device)
    key = key | {"captions": hashlib.sha256(numbers.tobytes()).hexdigest()}
    captions = yield from kept_table(
        "the teacher's captions", text_work, folder / "teacher-text", key, accelerator, stop
    )
    return Teacher(section, facts, images, captions, model.config.embed_dim, recipe.seed)


def _gone(_: Any) -> Any:
    raise UsageError("the teacher is gone and its embeddings are not complete", "put it back, or start anew without it")


def _texts(data: DataSplit, tokenizer: Tokenizer) -> dict[int, str]:
    """The first caption of each kind that the model's own tokenizer tells apart, by its `caption_id`."""
    found: dict[int, str] = {}
    texts = list(
        dict.fromkeys(text for index in data.indices.tolist() for text in captions_or_none(data.source, index))
    )
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        for text, row in zip(part, tokenizer.rows(part), strict=True):
            found.setdefault(caption_id(row), text)
    return found


def _tokens_of(teacher: CloobModel, texts: dict[int, str]) -> Callable[[np.ndarray], np.ndarray]:
    def tokens(numbers: np.ndarray) -> np.ndarray:
        assert teacher.tokenize is not None
        made: np.ndarray = teacher.tokenize([texts[int(number)] for number in numbers]).numpy()
        return made

    return tokens


def _known(folder: Path) -> Facts | None:
    try:
        return Facts(**json.loads((folder / _FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(folder: Path, facts: Facts) -> None:
    with replacing(folder / _FACTS) as temporary:
        temporary.write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
