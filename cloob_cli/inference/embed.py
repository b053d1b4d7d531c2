"""Images or texts as embeddings, in memory and in files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cloob_cli.core.model import CloobModel
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.errors import Failure
from cloob_cli.inference.encoding import device_of, encode_in_passes, encode_texts, encode_texts_in_passes, pass_size
from cloob_cli.inference.image_batches import OnImage, image_batches
from cloob_cli.inference.index.file_stamp import Stamp
from cloob_cli.inference.index.files import IndexFiles
from cloob_cli.inference.index.writing import Chunk, write_chunks
from cloob_cli.inference.prefetch import prefetched
from cloob_cli.inference.text_checks import count_cut

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
        for batch in prefetched(batches, device_of(model)):
            embeddings = encode_in_passes(model, batch.pixels, size) if batch.paths else None
            yield EmbeddedBatch(batch.paths, embeddings, batch.failures, stamps=batch.stamps)


def embed_texts(
    model: CloobModel,
    texts: Iterable[str],
    *,
    batch_size: int = 64,
    on_text: Callable[[], None] | None = None,
    alone: bool = False,
) -> Generator[EmbeddedBatch]:
    """Embed texts in their order; `on_text` is called for each.

    Args:
        alone: a text's embedding does not depend on the others, as an image's does not.
    """
    texts = iter(texts)
    size = pass_size(model, batch_size)
    while batch := list(islice(texts, batch_size)):
        embeddings = encode_texts_in_passes(model, batch, size) if alone else encode_texts(model, batch)
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
    files: IndexFiles, batches: Iterable[EmbeddedBatch], *, dtype: str, metadata: dict[str, str]
) -> Written:
    """Stream batches to files of embeddings, their names to the index, and failures to their list.

    All files appear together at the end, or none does and earlier ones stay as they were.

    Args:
        dtype: "float32" or "float16".
        metadata: of the index: how the embeddings were made.

    Raises:
        NothingFoundError: not one row.
    """
    failures: list[Failure] = []
    cut = 0

    def chunks() -> Iterator[Chunk]:
        nonlocal cut
        for batch in batches:
            failures.extend(batch.failures)
            cut += batch.cut
            if batch.embeddings is not None:
                rows = batch.embeddings.numpy().astype(dtype)
                yield Chunk(rows, [{files.column: name} for name in batch.names])

    count = write_chunks(files, index_schema(files.column, metadata), chunks(), failures)
    return Written(files.embeddings, files.index, files.failures if failures else None, count, cut)


def index_schema(column: str, metadata: dict[str, str]) -> pyarrow.Schema:
    """The schema of an index of embeddings: one column of text, and `metadata` in the file's own metadata."""
    import pyarrow as pa

    return pa.schema([pa.field(column, pa.string(), nullable=False)], metadata=metadata)
