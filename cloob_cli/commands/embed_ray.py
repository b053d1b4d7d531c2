"""`cloob embed --engine ray`: the images of folders, tars and Parquet files, embedded on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console, signals
from cloob_cli.commands.index_run import IndexOptions
from cloob_cli.errors import UsageError
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from cloob_cli.commands.inference_run import Work
    from cloob_cli.inference.cluster.embedder import Settings
    from cloob_cli.inference.cluster.parts import Found


@dataclass(frozen=True)
class RayOptions:
    """Options that only a run on a cluster has: the number of actors, and the column of images in Parquet files."""

    actors: int | None
    image_column: str | None


@dataclass(frozen=True)
class Result:
    """The number of embeddings in `output`, and of skipped images in `listing`, where there are any."""

    output: Path
    listing: Path | None
    rows: int
    skipped: int


def embed_on_ray(
    output: Path,
    sources: Sequence[Path],
    options: IndexOptions,
    own: RayOptions,
    *,
    exclude: Sequence[str] = (),
    force: bool = False,
) -> Result:
    """Embed images on the cluster at RAY_ADDRESS, or on this machine's cores, into a Parquet file or a Lance table.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: an option that a run on a cluster does not have.
        NothingFoundError: not one image can be read.
    """
    if Path("-") in sources:
        raise UsageError("--engine ray does not read paths from standard input", "give folders, tars or Parquet files")
    with signals.leaving_at_once():
        from cloob_cli.commands.inference_run import track_work
        from cloob_cli.inference.cluster import on_ray
        from cloob_cli.inference.cluster.result_table import write_table
        from cloob_cli.inference.index.files import LANCE
        from cloob_cli.inference.index.output_place import check_lance_place
        from cloob_cli.inference.output_paths import RAY, check_output, failures_path, output_files

        on_ray.check_ray()
    inputs = [source for source in sources if source.exists()]
    if output.suffix.lower() == LANCE:
        check_lance_place(output, failures_path(output), inputs, RAY, force=force)
    else:
        check_output(output, RAY, [".parquet", LANCE], inputs=inputs, force=force)
    found = _find(sources, exclude, options, own)
    settings, metadata = _settings(options)
    listing = failures_path(output)
    with (
        on_ray.cluster(),
        track_work("embed", found.images, "images", listing, output_files(output, RAY)) as work,
    ):
        workers = on_ray.workforce(own.actors, options.device)
        console.info(f"model {metadata['model']} on Ray: {workers}")
        with closing(on_ray.embed_parts(found.parts, settings, workers)) as tables:
            rows = write_table(output, listing, _counted(tables, work), metadata, options.dtype)
    work.tell_end("embedded")
    return Result(output, listing if work.failures else None, rows, len(work.failures))


def _find(sources: Sequence[Path], exclude: Sequence[str], options: IndexOptions, own: RayOptions) -> Found:
    from cloob_cli.data.image_folder import describe_passed_over
    from cloob_cli.inference.cluster.parts import find_parts

    with console.track("looking for images", unit="files", delay=0.5) as bar:
        found = find_parts(
            sources, size=options.batch_size, exclude=exclude, column=own.image_column, watch=bar.advance
        )
    if found.passed_over:
        console.warn(describe_passed_over(found.passed_over))
    for folder, tars in found.unread.items():
        if tars:
            console.warn(
                f"{folder} also has {counted(tars, '.tar file')}, which {'is' if tars == 1 else 'are'} not read: name "
                f"{'it to embed its' if tars == 1 else 'them to embed their'} images"
            )
    return found


def _settings(options: IndexOptions) -> tuple[Settings, dict[str, str]]:
    """The embedders' settings, and metadata of the result as far as they follow from them."""
    from cloob_cli.checkpoint.folder import read_config, weights_sha256
    from cloob_cli.inference.cluster.embedder import Settings
    from cloob_cli.inference.output_paths import RAY
    from cloob_cli.inference.provenance import decoding, describe_model
    from cloob_cli.registry.resolve import find_model

    folder = find_model(options.model).resolve()
    config, sha256 = read_config(folder), weights_sha256(folder)
    metadata = describe_model(RAY, config, config.name or folder.name, sha256)
    metadata |= {"dtype": options.dtype, "decoding": decoding(options.exact)}
    settings = Settings(
        str(folder),
        sha256,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        workers=options.workers,
        exact=options.exact,
        memory_budget=options.memory_budget,
    )
    return settings, metadata


def _counted(tables: Iterable[pa.Table], work: Work) -> Iterator[pa.Table]:
    """Pass tables on, and show how far the work is."""
    from cloob_cli.inference.cluster.result_table import failures_of

    for table in tables:
        failures = {failure.name: failure for failure in failures_of(table)}
        for name in table["path"].to_pylist():
            work.read(failures.get(name))
        work.rows += len(table) - len(failures)
        yield table
    work.check_rows()
