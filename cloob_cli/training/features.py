"""Features of frozen towers: computed once, kept in the run's folder, read back in every step.

A tower that is not trained, and that sees the same image or caption every time, gives the same features every time.
They are taken before the projection, which may be trained, and the adapter. Blocks of rows are the same whatever
happened on the way and however many processes compute them, so that a run that was killed ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from cloob_cli.core.model import CloobModel
from cloob_cli.core.token_rows import cut_to_longest
from cloob_cli.core.towers import TOWERS, TowerName, tower, trunk_is_frozen
from cloob_cli.data.augment import changes_images
from cloob_cli.data.batch import PairReader
from cloob_cli.data.captions import CaptionStore
from cloob_cli.data.decoded_images import ImageDecoder
from cloob_cli.data.images import Preprocess, normalize
from cloob_cli.data.kept_features import FeatureFile, FeatureTable
from cloob_cli.data.loader import captions_or_none, worker_count
from cloob_cli.data.streaming import PairStream
from cloob_cli.data.text import Tokenizer
from cloob_cli.recipe import AugmentSection, Recipe
from cloob_cli.training.checkpoints import full_disk_as_error
from cloob_cli.training.data_split import DataSplit
from cloob_cli.training.events import Event, Notice, Preparing
from cloob_cli.training.interrupt import StopRequest
from cloob_cli.training.precision import Precision
from cloob_cli.training.processes import local_processes, on_main, send_tensors

BLOCK = 256  # rows that are computed at once and written together
_EVERY = 15.0  # seconds between two notes of how far it is

# What a block of rows is computed to: float32 [n, width], and the rows among all that have none, with the reason.
Block = tuple[np.ndarray, dict[int, str]]


def kept_features(
    recipe: Recipe,
    folder: Path,
    model: CloobModel,
    data: DataSplit,
    data_parts: dict[str, Any],
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    accelerator: Accelerator,
    precision: Precision,
    stop: StopRequest,
) -> Generator[Event, None, dict[TowerName, FeatureTable]]:
    """The features of each tower whose trunk is frozen and that sees the same every time, computed where they lack.

    Every process takes part and gets all of them.
    """
    towers = [name for name in TOWERS if recipe.train.feature_cache and trunk_is_frozen(model, name)]
    if "image" in towers and (changes_images(recipe.augment) or len(recipe.train.image_sizes) > 1):
        towers.remove("image")
        yield Notice(
            "the image tower is frozen and its images change from step to step, so that it computes in every step: "
            "without [augment] and train.image_sizes it would once"
        )
    found: dict[TowerName, FeatureTable] = {}
    for name in towers:
        key = {
            "weights": _hash_of_trunk(model, name),
            "settings": _settings(model, name, precision),
            "data": hashlib.sha256(json.dumps(data_parts["train"]).encode()).hexdigest(),
            "pairs": len(data.indices),
        }
        work: _ImageWork | _TextWork
        if name == "image":
            work = _ImageWork(recipe, model, data, tokenizer, preprocess)
        else:
            work = _TextWork(model, data, tokenizer)
        found[name] = yield from _table(name, work, folder / name, key, accelerator, stop)
    return found


class _ImageWork:
    """Computes features of the images of pairs, in the order of their indices."""

    def __init__(
        self, recipe: Recipe, model: CloobModel, data: DataSplit, tokenizer: Tokenizer, preprocess: Preprocess
    ) -> None:
        self.numbers, self.width = data.indices, feature_width(model, "image")
        self._model, self._size = model, preprocess.image_size
        workers = recipe.data.workers
        self._workers = worker_count(local_processes()) if workers == "auto" else workers
        plain = AugmentSection()
        self._reader = PairReader(data.source, tokenizer, ImageDecoder(preprocess, plain), plain, recipe.seed, 1)

    def blocks(self, slices: list[slice]) -> Iterator[Block]:
        device = self._model.logit_scale.device
        requests = [(self.numbers[part], self._size) for part in slices]
        batches = PairStream(self._reader, self._workers).batches(0, requests)
        for part, batch in zip(slices, batches, strict=True):
            rows = np.zeros((part.stop - part.start, self.width), dtype=np.float32)
            usable = np.isin(self.numbers[part], batch.indices.numpy())
            if len(batch.indices):
                pixels = normalize(batch.pixels.to(device), self._model.config.preprocess)
                rows[usable] = self._model.image_trunk(pixels).float().cpu().numpy()
            reasons = iter(batch.skipped)
            missing = {int(row) + part.start: next(reasons).reason for row in np.flatnonzero(~usable)}
            yield rows, missing


class _TextWork:
    """Computes features of all captions, in the order of the numbers that tell them apart."""

    def __init__(self, model: CloobModel, data: DataSplit, tokenizer: Tokenizer) -> None:
        captions = CaptionStore((captions_or_none(data.source, index) for index in data.indices.tolist()), tokenizer)
        self.numbers, self._tokens = captions.unique()
        self.width, self._model = feature_width(model, "text"), model

    def blocks(self, slices: list[slice]) -> Iterator[Block]:
        device = self._model.logit_scale.device
        for part in slices:
            tokens = cut_to_longest(torch.from_numpy(self._tokens(self.numbers[part])), self._model.config.text)
            yield self._model.text_trunk(tokens.to(device)).float().cpu().numpy(), {}


def _table(
    name: TowerName,
    work: _ImageWork | _TextWork,
    folder: Path,
    key: dict[str, Any],
    accelerator: Accelerator,
    stop: StopRequest,
) -> Generator[Event, None, FeatureTable]:
    total = len(work.numbers)
    file: FeatureFile | None = None

    def opened() -> tuple[int, list[str]]:
        nonlocal file
        file = FeatureFile(folder, key, total, work.width)
        return file.done, file.changed

    done, changed = on_main(opened)
    if changed:
        yield Notice(f"the kept {name} features are of other {' and '.join(changed)}: they are computed anew")
    if done < total:
        how = f"going on after {done:,} of {total:,}" if done else f"{total:,}, once"
        yield Preparing(f"computing {name} features ({how}; {total * work.width * 4 / 1e6:,.0f} MB on the disk)")
    told = time.monotonic()
    for reached, blocks in _computed(work, done, total, accelerator):
        if file is not None:
            with full_disk_as_error(folder, lambda: "make room, then give the same command with --resume"):
                for rows, missing in blocks:
                    file.add(rows, missing)
        stop.check()
        if time.monotonic() - told > _EVERY:
            told = time.monotonic()
            yield Preparing(f"computing {name} features: {reached / total:.0%}")
    if accelerator.num_processes == 1:
        assert file is not None
        return FeatureTable(work.numbers, file.rows(), _by_number(work.numbers, file.missing))

    def whole() -> tuple[Tensor, dict[int, str]]:
        assert file is not None
        return torch.from_numpy(np.array(file.rows())), file.missing

    rows, missing = send_tensors(whole, accelerator.device)
    return FeatureTable(work.numbers, rows.numpy(), _by_number(work.numbers, missing))


def _computed(
    work: _ImageWork | _TextWork, done: int, total: int, accelerator: Accelerator
) -> Iterator[tuple[int, list[Block]]]:
    """The blocks from row `done` on, as many at a time as there are processes: (rows done then, the blocks in order).

    Other processes than the main one get none of the blocks.
    """
    starts = list(range(done, total, BLOCK))
    count, rank = accelerator.num_processes, accelerator.process_index
    rounds = [starts[first : first + count] for first in range(0, len(starts), count)]
    mine = [slice(group[rank], min(total, group[rank] + BLOCK)) for group in rounds if rank < len(group)]
    results = work.blocks(mine) if mine else iter(())
    for group in rounds:
        with torch.inference_mode(), accelerator.autocast():
            own = [next(results)] if rank < len(group) else []
        blocks = gather_object(own) if count > 1 else own
        yield min(total, group[-1] + BLOCK), blocks if accelerator.is_main_process else []


def feature_width(model: CloobModel, name: TowerName) -> int:
    """Numbers in what the projection of a tower gets."""
    if name == "text":
        return model.config.text.width
    return model.config.vision.width * (32 if model.config.vision.kind == "resnet" else 1)


def _settings(model: CloobModel, name: TowerName, precision: Precision) -> dict[str, Any]:
    config = model.config
    shared = {"precision": precision, "device": model.logit_scale.device.type}
    if name == "image":
        whole = {"vision": config.vision, "preprocess": config.preprocess}
    else:
        whole = {"text": config.text, "tokenizer": config.tokenizer}
    # As JSON gives it back: what is compared later comes from a file.
    described = {part: section.model_dump(mode="json", exclude={"adapter"}) for part, section in whole.items()}
    plain: dict[str, Any] = json.loads(json.dumps(shared | described))
    return plain


def _hash_of_trunk(model: CloobModel, name: TowerName) -> str:
    found = hashlib.sha256()
    for piece in tower(model, name).trunk:
        for tensor in [piece] if isinstance(piece, nn.Parameter) else piece.state_dict().values():
            content: np.ndarray = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            found.update(content.data)
    return found.hexdigest()


def _by_number(numbers: np.ndarray, missing: dict[int, str]) -> dict[int, str]:
    return {int(numbers[row]): reason for row, reason in missing.items()}
