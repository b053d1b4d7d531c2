"""Features of frozen towers: computed once, kept in the run's folder, read back in every step.

A tower that is not trained, and that sees the same image or caption every time, gives the same features every time.
They are taken before the projection, which may be trained, and the adapter. Blocks of rows are the same whatever
happened on the way and however many processes compute them, so that a run that was killed ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from cloob_cli import launch
from cloob_cli.core.model import CloobModel
from cloob_cli.core.model_config import TextConfig
from cloob_cli.core.token_rows import cut_to_longest
from cloob_cli.core.towers import TOWERS, TowerName, tower, trunk_is_frozen
from cloob_cli.data.augment import changes_images
from cloob_cli.data.batch import PairReader
from cloob_cli.data.caption_tokens import CaptionStore
from cloob_cli.data.decoded_images import ImageDecoder
from cloob_cli.data.feature_cache import FeatureFile, FeatureTable
from cloob_cli.data.loader import captions_or_none, worker_count
from cloob_cli.data.preprocess import Preprocess, normalize
from cloob_cli.data.streaming import PairStream
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.recipe import AugmentSection, Recipe
from cloob_cli.training.checkpoints import full_disk_as_error
from cloob_cli.training.data_split import DataSplit
from cloob_cli.training.events import Event, Notice, Preparing
from cloob_cli.training.interrupt import StopRequest
from cloob_cli.training.precision import Precision
from cloob_cli.training.processes import on_main, send_tensors

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
    work: Work
    config = model.config
    for name in towers:
        key = {
            "weights": _hash_of_trunk(model, name),
            "settings": _settings(model, name, precision),
        } | data_key(data, data_parts)
        width = feature_width(model, name)
        if name == "image":
            work = ImageWork(recipe, data, tokenizer, preprocess, model.image_trunk, width, accelerator.device)
        else:
            numbers, tokens = captions_of(data, tokenizer).unique()
            work = TextWork(numbers, tokens, config.text, model.text_trunk, width, accelerator.device)
        found[name] = yield from kept_table(f"{name} features", work, folder / name, key, accelerator, stop)
    return found


class Work(Protocol):
    """Something that computes features [width] of things with numbers, block by block."""

    numbers: np.ndarray
    width: int

    def blocks(self, slices: list[slice]) -> Iterator[Block]: ...


class ImageWork:
    """Computes features of the images of pairs, in the order of their indices.

    Args:
        embed: normalized pixels [n, 3, H, W] -> [n, width].
    """

    def __init__(
        self,
        recipe: Recipe,
        data: DataSplit,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        embed: Callable[[Tensor], Tensor],
        width: int,
        device: torch.device,
    ) -> None:
        self.numbers, self.width = data.indices, width
        self._embed, self._preprocess, self._device = embed, preprocess, device
        workers = recipe.data.workers
        self._workers = worker_count(launch.local_count()) if workers == "auto" else workers
        plain = AugmentSection()
        self._reader = PairReader(data.source, tokenizer, ImageDecoder(preprocess, plain), plain, recipe.seed, 1)

    def blocks(self, slices: list[slice]) -> Iterator[Block]:
        requests = [(self.numbers[part], self._preprocess.image_size) for part in slices]
        batches = PairStream(self._reader, self._workers).batches(0, requests)
        for part, batch in zip(slices, batches, strict=True):
            rows = np.zeros((part.stop - part.start, self.width), dtype=np.float32)
            usable = np.isin(self.numbers[part], batch.indices.numpy())
            if len(batch.indices):
                pixels = normalize(batch.pixels.to(self._device), self._preprocess.config)
                rows[usable] = self._embed(pixels).float().cpu().numpy()
            reasons = iter(batch.skipped)
            missing = {int(row) + part.start: next(reasons).reason for row in np.flatnonzero(~usable)}
            yield rows, missing


class TextWork:
    """Computes features of captions, in the order of the numbers that tell them apart.

    Args:
        tokens: numbers int64 [n] -> token ids int64 [n, context].
        text: the tower that they are for.
        embed: token ids -> [n, width].
    """

    def __init__(
        self,
        numbers: np.ndarray,
        tokens: Callable[[np.ndarray], np.ndarray],
        text: TextConfig,
        embed: Callable[[Tensor], Tensor],
        width: int,
        device: torch.device,
    ) -> None:
        self.numbers, self.width = numbers, width
        self._tokens, self._text, self._embed, self._device = tokens, text, embed, device

    def blocks(self, slices: list[slice]) -> Iterator[Block]:
        for part in slices:
            tokens = cut_to_longest(torch.from_numpy(self._tokens(self.numbers[part])), self._text)
            yield self._embed(tokens.to(self._device)).float().cpu().numpy(), {}


def captions_of(data: DataSplit, tokenizer: Tokenizer) -> CaptionStore:
    """All captions of the pairs to train on."""
    return CaptionStore((captions_or_none(data.source, index) for index in data.indices.tolist()), tokenizer)


def data_key(data: DataSplit, data_parts: dict[str, Any]) -> dict[str, Any]:
    """The part of a key of features that tells the training pairs."""
    fingerprint = hashlib.sha256(json.dumps(data_parts["train"]).encode()).hexdigest()
    return {"data": fingerprint, "pairs": len(data.indices)}


def kept_table(
    name: str,
    work: Work,
    folder: Path,
    key: dict[str, Any],
    accelerator: Accelerator,
    stop: StopRequest,
) -> Generator[Event, None, FeatureTable]:
    """The features of all that `work` numbers, computed by all processes where `folder` does not have them yet."""
    total = len(work.numbers)
    file: FeatureFile | None = None

    def opened() -> tuple[int, list[str]]:
        nonlocal file
        file = FeatureFile(folder, key, total, work.width)
        return file.done, file.changed

    done, changed = on_main(opened)
    if changed:
        yield Notice(f"the kept {name} are of other {' and '.join(changed)}: they are computed anew")
    if done < total:
        how = f"going on after {done:,} of {total:,}" if done else f"{total:,}, once"
        yield Preparing(f"computing {name} ({how}; {total * work.width * 4 / 1e6:,.0f} MB on the disk)")
    told = time.monotonic()
    for reached, blocks in _computed(work, done, total, accelerator):
        if file is not None:
            with full_disk_as_error(folder, lambda: "make room, then give the same command with --resume"):
                for rows, missing in blocks:
                    file.add(rows, missing)
        stop.check()
        if time.monotonic() - told > _EVERY:
            told = time.monotonic()
            yield Preparing(f"computing {name}: {reached / total:.0%}")
    if accelerator.num_processes == 1:
        assert file is not None
        return FeatureTable(work.numbers, file.rows(), _by_number(work.numbers, file.missing))

    def whole() -> tuple[Tensor, dict[int, str]]:
        assert file is not None
        return torch.from_numpy(np.array(file.rows())), file.missing

    rows, missing = send_tensors(whole, accelerator.device)
    return FeatureTable(work.numbers, rows.numpy(), _by_number(work.numbers, missing))


def _computed(work: Work, done: int, total: int, accelerator: Accelerator) -> Iterator[tuple[int, list[Block]]]:
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
    found: list[Tensor] = []
    for piece in tower(model, name).trunk:
        found += [piece] if isinstance(piece, nn.Parameter) else piece.state_dict().values()
    return hash_of(found)


def hash_of(tensors: Iterable[Tensor]) -> str:
    """The hex sha256 of the contents of tensors, one after the other."""
    found = hashlib.sha256()
    for tensor in tensors:
        content: np.ndarray = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(content.data)
    return found.hexdigest()


def _by_number(numbers: np.ndarray, missing: dict[int, str]) -> dict[int, str]:
    return {int(numbers[row]): reason for row, reason in missing.items()}
