"""The work on a batch of images, as Arrow tables in and out. Nothing here knows who calls it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cloob_cli.checkpoint.folder import open_model, weights_sha256
from cloob_cli.core.model import CloobModel
from cloob_cli.data.decoding_memory import MemoryBudget, default_budget
from cloob_cli.data.preprocess import Preprocess, read_crop
from cloob_cli.errors import UsageError
from cloob_cli.inference.cluster.parts import Part
from cloob_cli.inference.cluster.read_part import Content, read_part
from cloob_cli.inference.encoding import encode_in_passes, pass_size, prepare_for_inference
from cloob_cli.inference.image_batches import result_or_reason
from cloob_cli.inference.provenance import describe_computation
from cloob_cli.parallel import map_in_order

_BLOCK_BYTES = 32 << 20  # of images that are passed on together
_BLOCK_ROWS = 64

_CONTENTS = pa.schema([("path", pa.string()), ("data", pa.large_binary()), ("reason", pa.string())])


@dataclass(frozen=True)
class Settings:
    """The model and options of an embedder.

    Args:
        folder: the model's, at the same place on every machine.
        weights_sha256: of the weights that are to be there.
        workers: threads that decode; 0 decodes in the caller's thread, None picks as many as torch has.
        memory_budget: bytes that decoding may take; None takes the part of the machine's memory for one of `embedders`.
    """

    folder: str
    weights_sha256: str
    device: str | None
    precision: str | None
    batch_size: int
    workers: int | None
    exact: bool
    memory_budget: int | None
    embedders: int = 1


def read_parts(parts: Iterable[str]) -> Iterator[pa.Table]:
    """Read parts (`Part.to_json`) as tables with the columns `path`, `data` and `reason`, one of the latter null."""
    for text in parts:
        rows: list[Content] = []
        held = 0
        for content in read_part(Part.from_json(text)):
            rows.append(content)
            held += len(content.data or b"")
            if held >= _BLOCK_BYTES or len(rows) == _BLOCK_ROWS:
                yield _table(rows)
                rows, held = [], 0
        if rows:
            yield _table(rows)


def _table(rows: list[Content]) -> pa.Table:
    names, contents, reasons = zip(*rows, strict=True)
    return pa.Table.from_pydict({"path": names, "data": contents, "reason": reasons}, schema=_CONTENTS)


class ImageEmbedder:
    """Tables of `read_parts` in; tables with the columns `path`, `embedding`, `reason` and `made_with` out.

    A row in is a row out, in the same order. `embedding` is a list of fixed size, unit-norm float32, or zeros where
    `reason` says why there is none; `made_with` is JSON that says how the model computed.

    The model is opened with the first batch, so that what is wrong with it is an error of that batch.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._model: CloobModel | None = None
        total = default_budget() // settings.embedders if settings.memory_budget is None else settings.memory_budget
        self._budget = MemoryBudget(total)

    def __call__(self, contents: pa.Table) -> pa.Table:
        """Embed the images of a batch.

        Raises:
            UsageError: the model in the folder is another one.
            CloobError: the model cannot be opened.
        """
        model = self._model = self._model or _open(self._settings)
        size = pass_size(model, self._settings.batch_size)
        preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)

        def crop(row: int) -> np.ndarray | str:
            data = contents["data"][row]
            if not data.is_valid:
                return str(contents["reason"][row].as_py())
            return result_or_reason(
                lambda: read_crop(data.as_py(), preprocess, self._budget, exact=self._settings.exact)
            )

        workers = torch.get_num_threads() if self._settings.workers is None else self._settings.workers
        crops = list(map_in_order(crop, range(len(contents)), workers, ahead=2 * workers + 1))
        embeddings = np.zeros((len(crops), model.config.embed_dim), dtype=np.float32)
        readable = [row for row, crop in enumerate(crops) if not isinstance(crop, str)]
        if readable:
            pixels = torch.from_numpy(np.stack([crops[row] for row in readable]))
            embeddings[readable] = encode_in_passes(model, pixels, size).numpy()
        made_with = json.dumps(describe_computation(model) | {"pass_size": str(size)})
        columns: dict[str, Any] = {
            "path": contents["path"],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1]),
            "reason": pa.array([crop if isinstance(crop, str) else None for crop in crops], pa.string()),
            "made_with": pa.array([made_with] * len(crops), pa.string()),
        }
        return pa.table(columns)


def _open(settings: Settings) -> CloobModel:
    folder = Path(settings.folder)
    model = prepare_for_inference(open_model(folder, settings.device, settings.precision))
    if weights_sha256(folder) != settings.weights_sha256:
        raise UsageError(f"the model in {folder} is another one on this machine", "every machine needs the same model")
    return model
