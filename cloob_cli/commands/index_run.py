"""Shared by the commands that keep an index of images: lock it, bring it up to date, and say what was done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cloob_cli import console, signals
from cloob_cli.commands.index_captions import captions_of, embed_captions
from cloob_cli.commands.inference_run import open_model, track_work
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    from cloob_cli.commands.inference_run import Work
    from cloob_cli.core.model import CloobModel
    from cloob_cli.errors import Failure
    from cloob_cli.inference.embed import EmbeddedBatch
    from cloob_cli.inference.image_batches import OnImage
    from cloob_cli.inference.index.captions import Captions
    from cloob_cli.inference.index.files import IndexFiles
    from cloob_cli.inference.index.known_rows import KnownRows
    from cloob_cli.inference.index.update import NameOf, Plan

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # options, and how metadata call them


@dataclass(frozen=True)
class IndexOptions:
    """Options of the model and of reading, as the command line has them; `rebuild` begins anew."""

    model: str | None
    device: str | None
    precision: str | None
    dtype: str
    batch_size: int
    workers: int | None
    exact: bool
    memory_budget: int | None
    rebuild: bool


@dataclass
class Updated:
    """An index that is up to date: its rows, what was skipped, and the model where one had to be opened."""

    rows: int
    failures: list[Failure]
    model: CloobModel | None = None


class Helpers(Protocol):
    """Other processes: `hand_out` returns the images that are this one's, `collect` the parts of all."""

    def hand_out(
        self, files: IndexFiles, new: list[Path | Failure], made_with: dict[str, str], batch_size: int
    ) -> list[Path | Failure]: ...
    def collect(self, part: Path | None, work: Work) -> list[Path]: ...


def index_lock(files: IndexFiles) -> AbstractContextManager[None]:
    """Hold the lock of an index, so that a second run on it waits and then finds the work done."""
    from cloob_cli.path_text import path_text

    return held_lock(f"index {path_text(files.embeddings.resolve())}", str(files.embeddings))


@contextmanager
def held_lock(name: str, what: str) -> Iterator[None]:
    """Hold the lock called `name`; on stderr stands where another run holds it, or `what` cannot be guarded."""
    from cloob_cli.registry.locks import lock

    with ExitStack() as held:
        try:
            held.enter_context(lock(name, lambda: console.info(f"waiting for another run that writes {what}")))
        except OSError as problem:
            console.warn(f"{what} is not guarded against a second run: {problem.strerror or problem}")
        yield


def update_index(
    files: IndexFiles,
    paths: Sequence[Path | Failure],
    options: IndexOptions,
    name_of: NameOf | None = None,
    helpers: Helpers | None = None,
    model: CloobModel | None = None,
) -> Updated:
    """Embed what is new or changed among the images, drop the rows of others, and write the index where it changes.

    The caller holds `index_lock`.

    Args:
        name_of: the name of a path in the index; None: `path_text`.
        helpers: other processes that embed with this one; names are then `path_text`.
        model: the one that `options` name, where it is open already.

    Raises:
        UsageError: the index was made with another model, preprocessing, version or option that changes numbers.
        NothingFoundError: not one image can be read.
    """
    from cloob_cli.atomic_files import naming
    from cloob_cli.inference.index.journal import read_journal
    from cloob_cli.inference.index.reading import difference, find_index, known_rows, refuse_other, told_difference
    from cloob_cli.inference.index.unreadable import listed_failures
    from cloob_cli.inference.index.update import plan_update, write_index
    from cloob_cli.path_text import path_text

    name_of = name_of or path_text
    wanted = _describe(options)
    if options.rebuild:
        _remove_journals(files)
    stored = None if options.rebuild else find_index(files)
    if stored:
        refuse_other(files.embeddings, stored.metadata, wanted)

    def fits(made_with: dict[str, str]) -> bool:
        return difference(made_with, wanted) is None

    told = captions_of(files, paths, name_of, stored, fits, tell=model is None)  # else told the first time
    with known_rows(stored) as known, told as captions:
        resumed = read_journal(files.journal, fits, known)
        plan = plan_update(paths, known, name_of)
        has_same_captions = captions is None or (stored is not None and captions.are_those_of(stored))
        if plan.is_done(stored) and has_same_captions and not files.failures.exists():
            _remove_journals(files)
            console.info(f"{files.embeddings} is up to date: {counted(plan.kept, 'image')}")
            return Updated(plan.kept, [])
        if plan.kept:
            _tell_plan(plan, plan.gone(stored, name_of))
        made_with = (stored.metadata if stored else None) or resumed
        if made_with and not (captions and captions.new):
            failures = _known_failures(files, plan, options) if helpers is None or not plan.new else None
            if failures is not None:
                same = has_same_captions and plan.has_rows_of(stored) and listed_failures(files.failures) == failures
                with naming(files.all), _told(files, plan, failures):
                    rows = plan.kept
                    if not same:
                        rows = write_index(files, plan, known, [], failures, made_with, name_of, captions)
                _remove_journals(files)
                return Updated(rows, failures)
        with signals.leaving_at_once():
            from cloob_cli.inference import embed  # noqa: F401 - torch, among others
        if model is None:
            model, _ = open_model(options.model, options.device, options.precision)
        complete = wanted | _describe_opened(model, options)
        if stored:
            refuse_other(files.embeddings, stored.metadata, complete)
        rests = [rest for rest in (resumed, captions and captions.made_with) if rest]
        other = next(filter(None, (told_difference(rest, complete) for rest in rests)), None)
        if other is None:
            return _embed_new(files, plan, known, captions, model, options, complete, name_of, helpers)
    # Only the opened model tells on what kind of device it computes, and in which precision.
    console.info(f"what an unfinished run has embedded is not used: it was made with {other}")
    _remove_journals(files)
    return update_index(files, paths, options, name_of, helpers, model)


def _known_failures(files: IndexFiles, plan: Plan, options: IndexOptions) -> list[Failure] | None:
    """The failures of the images to embed; None where one can be read, and the model is needed."""
    from cloob_cli.checkpoint.folder import read_config
    from cloob_cli.inference.index.unreadable import still_unreadable
    from cloob_cli.registry.resolve import find_model

    if not plan.new:
        return []
    return still_unreadable(
        plan.new,
        files.failures,
        read_config(find_model(options.model)),
        workers=options.workers,
        exact=options.exact,
        memory_budget=options.memory_budget,
    )


@contextmanager
def _told(files: IndexFiles, plan: Plan, failures: list[Failure]) -> Iterator[None]:
    """Tell of images that cannot be read, if there are any, as a run does that tries to embed them."""
    if not failures:
        yield
        return
    with track_work("embed", len(failures), "images", files.failures, files.all) as work:
        work.kept = plan.kept
        for failure in failures:
            work.read(failure)
        work.check_rows()
        yield
    work.tell_end("embedded")


def _remove_journals(files: IndexFiles) -> None:
    from cloob_cli.inference.index.journal import remove_journal

    remove_journal(files.journal)
    remove_journal(files.caption_journal)


def _embed_new(
    files: IndexFiles,
    plan: Plan,
    known: KnownRows,
    captions: Captions | None,
    model: CloobModel,
    options: IndexOptions,
    made_with: dict[str, str],
    name_of: NameOf,
    helpers: Helpers | None,
) -> Updated:
    from cloob_cli.atomic_files import naming
    from cloob_cli.inference.index.update import write_index

    own = helpers.hand_out(files, plan.new, made_with, options.batch_size) if helpers else plan.new

    with (
        naming(files.all),
        track_work("embed", len(own), "images", files.failures, files.all, resumes=True) as work,
    ):
        work.kept = plan.kept
        part = embed_part(model, own, files.journal, options, made_with, work.read, work.counted, name_of)
        parts = helpers.collect(part, work) if helpers else [part] if part else []
        work.check_rows()
        if captions:
            embed_captions(files, captions, model, options.batch_size, options.dtype, made_with, work)
        count = write_index(files, plan, known, parts, work.failures, made_with, name_of, captions)
    _remove_journals(files)
    work.tell_end("embedded")
    return Updated(count, work.failures, model)


def embed_part(
    model: CloobModel,
    new: Sequence[Path | Failure],
    journal_folder: Path,
    options: IndexOptions,
    made_with: dict[str, str],
    on_image: OnImage,
    track: Callable[[Generator[EmbeddedBatch]], Generator[EmbeddedBatch]] = lambda batches: batches,
    name_of: NameOf | None = None,
) -> Path | None:
    """Embed images into a part of a journal, whose path is returned; None where there is not one row.

    Args:
        track: goes through the batches on their way.
    """
    import numpy as np

    from cloob_cli.inference.embed import embed_images
    from cloob_cli.inference.index.journal import Journal
    from cloob_cli.inference.index.update import record
    from cloob_cli.path_text import path_text

    batches = embed_images(
        model,
        new,
        batch_size=options.batch_size,
        workers=options.workers,
        exact=options.exact,
        memory_budget=options.memory_budget,
        on_image=on_image,
        with_stamps=True,
    )
    with (
        Journal(journal_folder, model.config.embed_dim, np.dtype(options.dtype), made_with) as journal,
        closing(record(track(batches), journal, new, name_of or path_text)) as rows,
    ):
        for _ in rows:
            pass
    return journal.path


def describe(options: IndexOptions, model: CloobModel) -> dict[str, str]:
    """Describe the making of rows with an opened model."""
    return _describe(options) | _describe_opened(model, options)


def _tell_plan(plan: Plan, gone: int) -> None:
    parts = [f"{plan.kept:,} of {counted(len(plan.entries), 'image')} {'is' if plan.kept == 1 else 'are'} known"]
    if plan.found_again:
        parts.append(f"{plan.found_again:,} of them by {'its' if plan.found_again == 1 else 'their'} contents")
    if gone:
        parts.append(f"{gone:,} {'is' if gone == 1 else 'are'} gone")
    console.info(", ".join(parts))


def _describe(options: IndexOptions) -> dict[str, str]:
    """Describe the making of rows as far as that can be told without opening the model."""
    from cloob_cli.checkpoint.folder import read_config, weights_sha256
    from cloob_cli.inference.provenance import decoding, describe_model
    from cloob_cli.registry.resolve import find_model

    folder = find_model(options.model)
    config = read_config(folder)
    described = describe_model("embed", config, config.name or folder.resolve().name, weights_sha256(folder))
    described |= {"dtype": options.dtype, "decoding": decoding(options.exact)}
    if options.device not in (None, "auto"):
        described["device"] = options.device.partition(":")[0]
    if options.precision in _PRECISIONS:
        described["precision"] = _PRECISIONS[options.precision]
    return described


def _describe_opened(model: CloobModel, options: IndexOptions) -> dict[str, str]:
    from cloob_cli.inference.encoding import pass_size
    from cloob_cli.inference.provenance import describe_computation

    return describe_computation(model) | {"pass_size": str(pass_size(model, options.batch_size))}
