"""Captions beside images, for the commands that keep an index with captions: find them and embed what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console
from cloob_cli.path_text import path_text
from cloob_cli.text_format import counted, told_cut

if TYPE_CHECKING:
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.core.model import CloobModel
    from cloob_cli.errors import Failure
    from cloob_cli.inference.index.captions import Captions
    from cloob_cli.inference.index.files import IndexFiles
    from cloob_cli.inference.index.reading import StoredIndex
    from cloob_cli.inference.index.update import NameOf


@contextmanager
def captions_of(
    files: IndexFiles,
    paths: Sequence[Path | Failure],
    name_of: NameOf,
    stored: StoredIndex | None,
    fits: Callable[[dict[str, str]], bool],
    *,
    tell: bool,
) -> Iterator[Captions | None]:
    """The captions of images, with the rows that are known of them; None where the index keeps none.

    Args:
        fits: says of the way in which rows of a killed run were made whether they can be used.
        tell: warn of each kind of fault with the number of files that have it.
    """
    from cloob_cli.inference.index.captions import open_captions

    if not files.has_captions:
        yield None
        return
    with open_captions(paths, name_of, stored, files.caption_journal, fits) as captions:
        for fault, faulty in captions.faults.items() if tell else ():
            console.warn(f"{fault}: {counted(len(faulty), 'file')}, the first {path_text(faulty[0])}")
        yield captions


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
    images = counted(len(captions.by_name), "image")
    have, are = ("has" if len(captions.by_name) == 1 else "have"), ("is" if len(texts) == 1 else "are")
    console.info(
        f"{images} {have} a caption beside {'it' if have == 'has' else 'them'}; "
        f"{counted(len(texts), 'caption')} {are} new"
    )
    if cut:
        console.warn(told_cut(cut, counted(cut, "caption"), model.config.text.context_length))
