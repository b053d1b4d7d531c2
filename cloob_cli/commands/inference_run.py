"""What the commands share that run a model over images: opening it, following the work, telling what became of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from cloob_cli import console
from cloob_cli.errors import Interrupted, NothingFoundError

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel
    from cloob_cli.inference.reading import Failure

_PATIENCE = 0.5  # seconds before the search for images shows a bar
_LISTED = 10  # skipped images that stderr names where a file lists them all


class Batch(Protocol):
    def __len__(self) -> int: ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def open_model(name: str | None, device: str | None, precision: str | None) -> tuple[CloobModel, Path]:
    """Find and open a model, and say on stderr which one, where it runs and in which number format.

    Of the bundled model, which nobody chose, that is said once, with what it is good for.
    """
    from cloob_cli.inference.encoding import prepare_for_inference
    from cloob_cli.registry import store

    folder = store.find(name)
    model = store.open_model(folder, device, precision)
    is_bundled = folder == store.bundled_folder(store.BUNDLED_MODEL)
    if not is_bundled or _is_new():
        console.talk(f"model {description(model, folder)}")
        if is_bundled:
            _introduce_bundled()
    return prepare_for_inference(model), folder


def model_name(model: CloobModel, folder: Path) -> str:
    """The name that the model's configuration states, or else its folder's."""
    return model.config.name or folder.resolve().name


def description(model: CloobModel, folder: Path) -> str:
    """Which model, where and in which number format: "cloob-rn50 on cuda:0 in float16"."""
    from cloob_cli.inference.encoding import device_of

    dtype = str(model.logit_scale.dtype).removeprefix("torch.")
    return f"{model_name(model, folder)} on {device_of(model)} in {dtype}"


def _is_new() -> bool:
    """Whether the bundled model was never introduced to this user; from now on it was."""
    from cloob_cli.registry import store

    if console.is_quiet():
        return True
    marker = store.home() / f".{store.BUNDLED_MODEL}.introduced"
    try:
        if marker.exists():
            return False
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:  # a home that cannot be written
        pass
    return True


def _introduce_bundled() -> None:
    from cloob_cli.registry import cards, store

    card = cards.card(store.BUNDLED_MODEL)
    console.talk(f"{card.summary}. Trained on {card.data}.")
    console.hint("for photographs choose a larger model with --model; `cloob zoo list` shows them")


def find_images(sources: Sequence[Path]) -> list[Path | Failure]:
    """The images that the arguments mean; what looks like one and cannot be read here is told in one notice."""
    from cloob_cli.data.folder import describe_passed_over
    from cloob_cli.inference.reading import collect_images

    with console.progress("looking for images", unit="files", delay=_PATIENCE) as bar:
        found = collect_images(sources, bar.advance)
    if found.passed_over:
        console.warn(describe_passed_over(found.passed_over))
    return found.items


class Work:
    """What became of a command's inputs so far."""

    def __init__(self, bar: console.Progress, unit: str, listing: Path | None) -> None:
        self._bar, self._unit, self._listing = bar, unit, listing
        self._started = time.monotonic()
        self.failures: list[Failure] = []
        self.rows = 0

    def read(self, failure: Failure | None) -> None:
        """One more input was read, or was skipped, which stderr says at once (in full where no file lists it)."""
        if failure is not None:
            self.failures.append(failure)
            if self._listing is None or len(self.failures) <= _LISTED:
                console.warn(f"skipped {failure.path}: {failure.reason}")
        self._bar.advance()

    def prepared(self, what: str, done: int, total: int) -> None:
        """What comes before the first input went so far."""
        self._bar.note(f"{what}: {done:,} of {total:,}" if done < total else "")

    def follow(self, batches: Generator[AnyBatch]) -> Generator[AnyBatch]:
        """Pass batches on and count their rows.

        Raises:
            NothingFoundError: at the end, where not one input was usable.
        """
        with closing(batches):
            for batch in batches:
                self.rows += len(batch)
                yield batch
        if not self.rows:
            raise NothingFoundError(f"not one of the {len(self.failures)} {self._unit} can be read")

    def tell_end(self, verb: str, model: str) -> None:
        """The closing lines: how many in what time by which model, and how many were skipped."""
        seconds = time.monotonic() - self._started
        took = f"{seconds:.1f} s" if seconds < 100 else console.duration(seconds)
        rate = self.rows / max(seconds, 1e-9)
        console.talk(f"{verb} {self.rows:,} {self._unit} in {took} ({rate:,.3g} a second) with {model}")
        if self.failures:
            where = f", listed in {self._listing}" if self._listing else ""
            console.warn(f"{len(self.failures)} image(s) skipped{where}")


@contextmanager
def following(
    what: str, total: int | None, unit: str, listing: Path | None = None, kept: Sequence[Path] = ()
) -> Iterator[Work]:
    """Show the work's progress; Ctrl-C becomes an error that says how far it came.

    Args:
        listing: the file that will list what was skipped.
        kept: files that are written at the end only, and so stay as they were when the work is interrupted.
    """
    work: Work | None = None
    try:
        with console.progress(what, total, unit) as bar:
            work = Work(bar, unit, listing)
            yield work
    except KeyboardInterrupt:
        rows = work.rows if work else 0
        of = f" of {total:,}" if total is not None else ""
        done = f"interrupted after {rows:,}{of} {unit}"
        raise Interrupted(done, _what_stays(kept)) from None


def _what_stays(kept: Sequence[Path]) -> str:
    if not kept:
        return "every row that was printed is whole"
    there = [str(path) for path in kept if path.exists()]
    return f"{', '.join(there)}: as before this run" if there else f"{kept[0]} was not written"
