"""Images or texts as embeddings in files: `emb.npy` and, in the same order, `emb.parquet`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from cloob_cli.core.model import CloobModel
from cloob_cli.data.images import Preprocess
from cloob_cli.errors import Failure, NothingFoundError
from cloob_cli.files import replacing_together
from cloob_cli.inference.encoding import encode_in_passes, encode_texts, pass_size
from cloob_cli.inference.index.stamp import Stamp
from cloob_cli.inference.output_files import output_files
from cloob_cli.inference.outputs import NpyRows, parquet_rows, write_failures
from cloob_cli.inference.reading import OnImage, image_batches
from cloob_cli.inference.tokens import count_cut

if TYPE_CHECKING:
    import pyarrow


@dataclass
class EmbeddedBatch:
    """Embeddings, unit-norm float32 [B, D] on the CPU, of B named things (paths or texts), and what was skipped.

    `cut` of the texts are longer than the model's context; `stamps` tell the images' files, where that was asked for.
    """

    names: list[str]
    embeddings: Tensor | None
    failures: list[Failure] = field(default_factory=list)
    cut: int = 0
    stamps: list[Stamp] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


def embed_images(
    model: CloobModel,
    paths: Iterable[Path | Failure],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    exact: bool = False,
    memory_budget: int | None = None,
    on_image: OnImage | None = None,
    with_stamps: bool = False,
) -> Generator[EmbeddedBatch]:
    """Embed images in their order; unreadable ones are failures of the batch they would have stood in.

    An image's embedding does not depend on the others: all passes through the model have `pass_size` images.
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
        with_stamps=with_stamps,
    )
    size = pass_size(model, batch_size)
    with closing(batches):
        for batch in batches:
            embeddings = encode_in_passes(model, batch.pixels, size) if batch.paths else None
            yield EmbeddedBatch(batch.paths, embeddings, batch.failures, stamps=batch.stamps)


def embed_texts(
    model: CloobModel, texts: Iterable[str], *, batch_size: int = 64, on_text: Callable[[], None] | None = None
) -> Generator[EmbeddedBatch]:
    """Embed texts in their order; `on_text` is called for each."""
    texts = iter(texts)
    while batch := list(islice(texts, batch_size)):
        embeddings = encode_texts(model, batch)
        if on_text:
            for _ in batch:
                on_text()
        yield EmbeddedBatch(batch, embeddings, cut=count_cut(model, batch))


@dataclass(frozen=True)
class Written:
    """The files of one run: `failures` is None where nothing was skipped; `cut` texts did not fit the context."""

    embeddings: Path
    index: Path
    failures: Path | None
    rows: int
    cut: int


def write_embeddings(
    output: Path,
    batches: Iterable[EmbeddedBatch],
    *,
    width: int,
    dtype: str,
    column: str,
    metadata: dict[str, str],
) -> Written:
    """Stream batches to `output` (.npy), the names to the .parquet beside it and failures to .failures.jsonl.

    All files appear together at the end, or none does and earlier ones stay as they were.

    Args:
        width: D, the length of an embedding.
        dtype: "float32" or "float16".
        column: the name of the index's column, "path" or "text".
        metadata: of the index: how the embeddings were made.

    Raises:
        NothingFoundError: not one row.
    """
    files = output_files(output, "embed")
    _, index, skipped = files
    failures: list[Failure] = []
    cut = 0
    with replacing_together(files) as [npy, parquet, listing]:
        with npy.open("wb") as stream, parquet_rows(parquet, index_schema(column, metadata)) as names:
            rows = NpyRows(stream, width, np.dtype(dtype))
            for batch in batches:
                failures += batch.failures
                cut += batch.cut
                if batch.embeddings is not None:
                    rows.write(batch.embeddings.numpy())
                    names.write({column: name} for name in batch.names)
            rows.finish()
        if not rows.count:
            raise NothingFoundError("nothing to embed: not one input could be read")
        write_failures(listing, failures)
    return Written(output, index, skipped if failures else None, rows.count, cut)


def index_schema(column: str, metadata: dict[str, str]) -> pyarrow.Schema:
    """The schema of an index of embeddings: one column of text, and `metadata` in the file's own metadata."""
    import pyarrow as pa

    return pa.schema([pa.field(column, pa.string(), nullable=False)], metadata=metadata)
