"""What the commands share that run a model over pictures: opening it, following the work, listing what was skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from cloob_cli import console
from cloob_cli.errors import NothingFoundError

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel
    from cloob_cli.inference.reading import Failure

_LISTED = 10  # skipped pictures that stderr names where a file lists them all


class Batch(Protocol):
    failures: list[Failure]

    def __len__(self) -> int: ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def open_model(name: str | None, device: str | None, precision: str | None) -> tuple[CloobModel, Path]:
    """Find and open a model, and say on stderr which one, where it runs and in which number format."""
    from cloob_cli.inference.encoding import device_of, prepare_for_inference
    from cloob_cli.registry import store

    folder = store.find(name)
    model = store.open_model(folder, device, precision)
    dtype = str(model.logit_scale.dtype).removeprefix("torch.")
    console.talk(f"model {model_name(model, folder)} on {device_of(model)} in {dtype}")
    if folder == store.bundled_folder(store.BUNDLED_MODEL):
        _introduce_bundled()
    return prepare_for_inference(model), folder


def model_name(model: CloobModel, folder: Path) -> str:
    """The name that the model's configuration states, or else its folder's."""
    return model.config.name or folder.resolve().name


def _introduce_bundled() -> None:
    from cloob_cli.registry import cards, store

    card = cards.card(store.BUNDLED_MODEL)
    console.talk(f"{card.summary}. Trained on {card.data}.")
    console.hint("for photographs choose a larger model with --model; `cloob zoo list` shows them")


def report_passed_over(counts: Counter[str]) -> None:
    """One notice of image files that cannot be read here, and of what would make them readable."""
    from cloob_cli.data.folder import describe_passed_over

    if counts:
        console.warn(describe_passed_over(counts))


class Skipped:
    """Collects what could not be read and says so on stderr, in full where no file lists it."""

    def __init__(self, listing: Path | None) -> None:
        self._listing = listing
        self.failures: list[Failure] = []

    def add(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self.failures.append(failure)
            if self._listing is None or len(self.failures) <= _LISTED:
                console.warn(f"skipped {failure.path}: {failure.reason}")

    def summarise(self) -> None:
        if self.failures:
            where = f", listed in {self._listing}" if self._listing else ""
            console.warn(f"{len(self.failures)} picture(s) skipped{where}")


def followed(
    batches: Generator[AnyBatch],
    skipped: Skipped,
    what: str,
    total: int | None,
    unit: str,
    rows_follow: bool = False,
) -> Generator[AnyBatch]:
    """Pass batches on, collecting failures, with a progress bar; `rows_follow` says that each is printed at once.

    Raises:
        NothingFoundError: at the end, where not one input was usable.
    """
    usable = 0
    with closing(batches), console.progress(what, total, unit, beside_results=rows_follow) as bar:
        for batch in batches:
            skipped.add(batch.failures)
            usable += len(batch)
            yield batch
            bar.advance(len(batch) + len(batch.failures))
    if not usable:
        raise NothingFoundError(f"not one of the {len(skipped.failures)} pictures can be read")
