"""Shared by the commands that run a model over images: open it, track the work, report the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from cloob_cli import console
from cloob_cli.errors import Interrupted, NothingFoundError, UsageError
from cloob_cli.text_format import counted, duration

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel
    from cloob_cli.errors import Failure

_BAR_DELAY = 0.5  # seconds before the search for images shows a bar
_LISTED = 10  # skipped images that stderr names where a file lists them all


class Batch(Protocol):
    def __len__(self) -> int: ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def open_model(name: str | None, device: str | None, precision: str | None) -> tuple[CloobModel, Path]:
    """Find and open a model, and name it on stderr with its device and precision, before the work.

    The bundled model, which nobody chose, is introduced the first time, with its purpose.
    """
    from cloob_cli import assets
    from cloob_cli.checkpoint.folder import open_model as open_folder
    from cloob_cli.inference.encoding import prepare_for_inference
    from cloob_cli.registry.resolve import find_model

    folder = find_model(name)
    model = open_folder(folder, device, precision)
    console.info(f"model {description(model, folder)}")
    if folder == assets.bundled_folder(assets.BUNDLED_MODEL) and _is_new():
        _introduce_bundled()
    return prepare_for_inference(model), folder


def model_name(model: CloobModel, folder: Path) -> str:
    """The name that the model's configuration states, or else its folder's."""
    return model.config.name or folder.resolve().name


def description(model: CloobModel, folder: Path) -> str:
    """A model with its device and dtype: "cloob-rn50 on cpu (2 threads) in float32"."""
    from cloob_cli.core.device import device_text
    from cloob_cli.inference.encoding import device_of

    dtype = str(model.logit_scale.dtype).removeprefix("torch.")
    return f"{model_name(model, folder)} on {device_text(device_of(model))} in {dtype}"


def _is_new() -> bool:
    """True the first time that this user meets the bundled model; from now on False."""
    from cloob_cli import assets
    from cloob_cli.registry import paths

    if console.is_quiet():
        return True
    marker = paths.home() / f".{assets.BUNDLED_MODEL}.introduced"
    try:
        if marker.exists():
            return False
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:  # a home that cannot be written
        pass
    return True


def _introduce_bundled() -> None:
    from cloob_cli import assets
    from cloob_cli.registry import entries

    entry = entries.find_entry(assets.BUNDLED_MODEL)
    console.info(f"{entry.summary}. Trained on {entry.data}.")
    console.hint("for photographs choose a larger model with --model; `cloob zoo list` shows them")


STDIN = Path("-")


def read_sources(sources: Sequence[Path], null: bool = False) -> list[Path]:
    """The arguments, with `-` replaced by the paths that stdin lists, one a line (`null`: between null characters).

    Raises:
        UsageError: `null` without `-`, or `-` twice.
        NothingFoundError: stdin lists no path.
    """
    if null and STDIN not in sources:
        raise UsageError("--null is about paths from standard input", "give `-` instead of DIR to read them")
    if sources.count(STDIN) > 1:
        raise UsageError("standard input can be read only once", "give `-` once")
    if STDIN not in sources:
        return list(sources)
    content = sys.stdin.buffer.read() if sys.stdin is not None else b""
    names = content.split(b"\0") if null else content.splitlines()
    listed = [Path(os.fsdecode(name)) for name in names if name]
    if not listed:
        raise NothingFoundError(
            "standard input lists no path", "one path a line, or with --null between null characters"
        )
    at = list(sources).index(STDIN)
    return [*sources[:at], *listed, *sources[at + 1 :]]


def find_images(sources: Sequence[Path], exclude: Sequence[str] = ()) -> list[Path | Failure]:
    """Find the images that the arguments name; one warning counts files in image formats that cannot be read here."""
    from cloob_cli.data.image_folder import describe_passed_over
    from cloob_cli.inference.find_images import collect_images

    with console.track("looking for images", unit="files", delay=_BAR_DELAY) as bar:
        found = collect_images(sources, bar.advance, exclude)
    if found.passed_over:
        console.warn(describe_passed_over(found.passed_over))
    return found.items


class Work:
    """The inputs of a command that are done so far: rows, failures, and the bar that shows them."""

    def __init__(self, bar: console.Progress, unit: str, listing: Path | None) -> None:
        self._bar, self._unit, self._listing = bar, unit, listing
        self._started = time.monotonic()
        self.failures: list[Failure] = []
        self.rows = 0
        self.kept = 0  # rows of earlier runs

    def read(self, failure: Failure | None) -> None:
        """Count one more input as read or skipped; warn of a skipped one (of all where no file lists them)."""
        if failure is not None:
            self._tell_skip(failure)
        self._bar.advance()

    def _tell_skip(self, failure: Failure) -> None:
        self.failures.append(failure)
        if self._listing is None or len(self.failures) <= _LISTED:
            console.warn(f"skipped {failure.name}: {failure.reason}")

    def failed(self, failure: Failure) -> None:
        """Count an input that was read, but with which something else went wrong."""
        self.failures.append(failure)
        console.warn(f"{failure.name}: {failure.reason}")

    def prepared(self, what: str, done: int, total: int) -> None:
        """Show how far the preparation is, before the first input."""
        self._bar.note(f"{what}: {done:,} of {total:,}" if done < total else "")

    def counted(self, batches: Generator[AnyBatch]) -> Generator[AnyBatch]:
        """Yield `batches` and count their rows."""
        with closing(batches):
            for batch in batches:
                self.rows += len(batch)
                yield batch

    def track(self, batches: Generator[AnyBatch]) -> Generator[AnyBatch]:
        """Yield all `batches` that there are and count their rows; `check_rows` at the end."""
        yield from self.counted(batches)
        self.check_rows()

    def add(self, rows: int, failures: Sequence[Failure]) -> None:
        """Count what another process has done."""
        self.rows += rows
        for failure in failures:
            self._tell_skip(failure)

    def check_rows(self) -> None:
        """Refuse a result without a row.

        Raises:
            NothingFoundError: not one input was usable.
        """
        if not self.rows and not self.kept:
            one = self._unit.removesuffix("s")
            many = f"not one of the {len(self.failures):,} {self._unit} can be read"
            raise NothingFoundError(many if len(self.failures) != 1 else f"the only {one} cannot be read")

    def tell_end(self, verb: str) -> None:
        """Print the closing lines: the number of inputs, the time, and how many were skipped."""
        seconds = time.monotonic() - self._started
        took = f"{seconds:.1f} s" if seconds < 100 else duration(seconds)
        rate = self.rows / max(seconds, 1e-9)
        done = counted(self.rows, self._unit.removesuffix("s"))
        console.info(f"{verb} {done} in {took}" + (f" ({rate:,.3g} a second)" if self.rows else ""))
        if self.failures:
            where = f", listed in {self._listing}" if self._listing else ""
            console.warn(f"{len(self.failures)} image(s) skipped{where}")


@contextmanager
def track_work(
    what: str,
    total: int | None,
    unit: str,
    listing: Path | None = None,
    kept: Sequence[Path] = (),
    *,
    resumes: bool = False,
) -> Iterator[Work]:
    """Show the progress of the work in the body; Ctrl-C becomes an error that says how far it came.

    Args:
        listing: the file that will list what was skipped.
        kept: files that are written at the end only, and so stay as they were when the work is interrupted.
        resumes: the same command goes on with what an interrupted one has done.
    """
    work: Work | None = None
    try:
        with console.track(what, total, unit) as bar:
            work = Work(bar, unit, listing)
            yield work
    except KeyboardInterrupt:
        rows = work.rows if work else 0
        of = f"{rows:,} of " if total is not None else ""
        done = f"interrupted after {of}{counted(rows if total is None else total, unit.removesuffix('s'))}"
        if resumes and rows:
            console.hint("the same command goes on from here")
        raise Interrupted(done, _untouched(kept)) from None


def _untouched(kept: Sequence[Path]) -> str:
    if not kept:
        return "every row that was printed is whole"
    there = [str(path) for path in kept if path.exists()]
    return f"{', '.join(there)}: as before this run" if there else f"{kept[0]} was not written"
