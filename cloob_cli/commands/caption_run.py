"""Captions beside images, for the commands that keep an index with captions: find them and embed what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console

if TYPE_CHECKING:
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.core.model import CloobModel
    from cloob_cli.errors import Failure
    from cloob_cli.inference.index.captions import Captions
    from cloob_cli.inference.index.files import IndexFiles
    from cloob_cli.inference.index.stored import StoredIndex
    from cloob_cli.inference.index.update import NameOf


def captions_of(
    files: IndexFiles,
    paths: Sequence[Path | Failure],
    name_of: NameOf,
    stored: StoredIndex | None,
    fits: Callable[[dict[str, str]], bool],
) -> AbstractContextManager[Captions | None]:
    """The captions of images, with the rows that are known of them; None where the index keeps none.

    Args:
        fits: says of the way in which rows of a killed run were made whether they can be used.
    """
    from cloob_cli.inference.index.captions import open_captions

    if not files.has_captions:
        return nullcontext()
    return open_captions(paths, name_of, stored, files.caption_journal, fits)


def embed_captions(
    files: IndexFiles,
    captions: Captions,
    model: CloobModel,
    batch_size: int,
    dtype: str,
    made_with: dict[str, str],
    work: Work,
) -> None:
    """Embed the captions that no row is known of; one line on stderr counts the images that have one."""
    import numpy as np

    from cloob_cli.inference.embed import embed_texts
    from cloob_cli.inference.index.captions import record_captions
    from cloob_cli.inference.index.journal import Journal

    texts, done = captions.new, 0

    def tell() -> None:
        nonlocal done
        done += 1
        work.prepared("captions", done, len(texts))

    journal = Journal(files.caption_journal, model.config.embed_dim, np.dtype(dtype), made_with)
    batches = embed_texts(model, texts, batch_size=batch_size, on_text=tell, alone=True)
    cut = record_captions(captions, batches, journal)
    console.info(f"{len(captions.by_name):,} images have a caption beside them; {len(texts):,} captions are new")
    if cut:
        context = model.config.text.context_length
        console.warn(f"{cut:,} captions are longer than the model's {context} tokens and were cut")
