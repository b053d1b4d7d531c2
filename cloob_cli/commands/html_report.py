"""`--html`: the checks of the option, thumbnails of files, and the page of `cloob classify`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli import console
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    from cloob_cli.inference.classify import ClassifiedBatch
    from cloob_cli.inference.result_rows import Classified
    from cloob_cli.report.gallery import Gallery, Item

CHOICES = 5  # labels of an image that its page offers at least, whatever --top-k shows
_TABLE_ONLY = {"rejection"}  # of what rows have beside their labels: a number that cards show
SUFFIXES = (".html", ".htm")

Tap = Callable[[Iterable["ClassifiedBatch"]], Generator["ClassifiedBatch"]]


def check_html(page: Path | None, inputs: Iterable[Path], force: bool) -> None:
    """Refuse a page that cannot be written, before any work.

    Raises:
        UsageError: as `check_output`.
    """
    from cloob_cli.inference.output_paths import check_output

    if page is not None:
        check_output(page, "report", SUFFIXES, inputs=inputs, force=force, option="--html")


@contextmanager
def classify_page(
    page: Path | None,
    sources: Sequence[Path],
    labels: Iterable[str],
    further: Sequence[str],
    facts: Sequence[tuple[str, str]],
    *,
    top_k: int,
    moved: bool,
) -> Iterator[Tap]:
    """Yield what batches go through: their rows are put on the page, and keep `top_k` labels.

    Args:
        page: None: there is no page.
        sources: what was searched for images.
        labels: those that can be chosen on the page.
        further: the names of what rows have beside their labels.
        facts: what the page says of the run.
        moved: images are no longer where they were found, but where "sorted_to" says.
    """
    if page is None:
        yield lambda batches: (batch for batch in batches)
        return
    from cloob_cli.path_text import path_text
    from cloob_cli.report.gallery import Gallery

    numbers = [name for name in further if name in _TABLE_ONLY]
    title = "classify " + ", ".join(path_text(source) for source in sources[:3]) + (", ..." if sources[3:] else "")
    gallery = Gallery(title, ["probability", "cosine", *numbers], list(labels), facts=facts)
    with writing(page, gallery) as add:

        def tap(batches: Iterable[ClassifiedBatch]) -> Generator[ClassifiedBatch]:
            for batch in batches:
                for row, thumbnail in zip(batch.rows, batch.thumbnails, strict=True):
                    add(_item(row, thumbnail, numbers, moved))
                batch.rows = [replace(row, top=row.top[:top_k]) for row in batch.rows]
                yield batch

        yield tap


@contextmanager
def writing(page: Path, gallery: Gallery) -> Iterator[Callable[[Item], None]]:
    """Yield the function that puts an image on a page; the page stands when the body is through."""
    from cloob_cli.report.gallery import open_gallery

    with open_gallery(page, gallery) as file:
        yield file.add
    console.info(f"wrote {page}: {counted(file.count, 'image')}, {page.stat().st_size / 1e6:.2g} MB")


def thumbnails_of(
    paths: Sequence[Path], workers: int | None = None, memory_budget: int | None = None
) -> Iterator[bytes]:
    """The thumbnail of each image, in order; none of one that cannot be read. A bar shows the progress.

    Args:
        workers: threads; None picks by the number of cores.
        memory_budget: bytes that decoding may take at a time; None picks by the machine's memory.
    """
    from cloob_cli.core.model_config import PreprocessConfig
    from cloob_cli.data.preprocess import Preprocess
    from cloob_cli.data.thumbnails import SIDE
    from cloob_cli.inference.image_batches import image_batches

    small = Preprocess(SIDE, PreprocessConfig(resize="squash"))  # no model sees these images
    with console.track("thumbnails", len(paths), unit="images", delay=0.5) as bar:
        for batch in image_batches(
            paths, small, batch_size=1, workers=workers, memory_budget=memory_budget, with_thumbnails=True
        ):
            bar.advance()
            yield batch.thumbnails[0] if batch.thumbnails else b""


def _item(row: Classified, thumbnail: bytes, numbers: Sequence[str], moved: bool) -> Item:
    from cloob_cli.report.gallery import Item

    choice = row.label
    places = row.further.get("sorted_to") if moved else None
    values = [choice.probability, choice.cosine, *(row.further[name] for name in numbers)]
    details = [(name.replace("_", " "), _text(value)) for name, value in row.further.items() if name not in _TABLE_ONLY]
    choices = [(one.label, one.probability) for one in row.top]
    return Item(places[0] if places else row.path, thumbnail, choice.label, values, choices, details)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(one["label"] if isinstance(one, dict) else str(one) for one in value)
    return str(value)
