"""Data sets for evaluation: on the Hugging Face Hub (CLIP_benchmark's layout, parquet), and zip files at an address."""

from __future__ import annotations

import fnmatch
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from cloob_cli.atomic_files import replacing_folder
from cloob_cli.errors import DataError, DownloadError
from cloob_cli.registry import hub, paths
from cloob_cli.registry.download import Downloaded, downloading
from cloob_cli.registry.events import Notice, Report, unreported
from cloob_cli.registry.http import Hosts
from cloob_cli.registry.locks import lock, lock_name
from cloob_cli.registry.pinned_hashes import pin_hash, pinned_hash
from cloob_cli.registry.storage import check_space

_DESCRIPTIONS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")


def hub_data_set(text: str, splits: Sequence[str], report: Report = unreported, hosts: Hosts | None = None) -> Path:
    """Bring the named splits of `hf://ORG/REPO[@REVISION]`, a data set, into the Hub's own cache.

    Args:
        hosts: those that are asked for other data sets too.

    Returns:
        The folder of that revision in the cache.

    Raises:
        UsageError: not a reference.
        DownloadError: it is not there, or not reachable and not cached.
        DataError: it holds nothing of these splits.
    """
    reference = hub.parse_reference(text)
    patterns = [*_DESCRIPTIONS, *(pattern for split in splits for pattern in (f"{split}/*", f"*{split}-*.parquet"))]
    if hub.offline_by_environment():
        return hub.cached(reference, patterns, "dataset")
    with (hosts or Hosts()).trying(hub.endpoint()):
        found = hub.listing(reference, "dataset")
    names = [file.name for file in found.files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]
    if not any(name.endswith((".tar", ".parquet")) for name in names):
        raise DataError(
            f"{reference} has no tar or parquet file of the split {' or '.join(splits)}",
            "known layouts: test/0.tar with classnames.txt, as CLIP_benchmark has it; data/test-*.parquet",
        )
    return hub.snapshot(found, names, report)


def zip_data_set(
    url: str, name: str, sha256: str | None = None, report: Report = unreported, hosts: Hosts | None = None
) -> Path:
    """Fetch a zip and unpack it to the data sets' folder, once; what is there already is taken as it is.

    The hash of the first file that came from an address is kept, and held from then on.

    Args:
        name: of its folder.
        sha256: what the file must hash to; None: what was kept.
        hosts: those that are asked for other data sets too.

    Returns:
        The folder; where the zip holds a single folder, that one.

    Raises:
        DownloadError, ChecksumError, DiskSpaceError: as `downloading`.
        DataError: it is no zip, damaged, or names a file outside of its folder.
    """
    folder = paths.datasets_folder() / name
    if not folder.is_dir():
        with (
            lock(str(folder), lambda: report(Notice(f"another process is fetching {name}; waiting for it"))),
            _fetched(url, sha256, report, hosts) as file,
        ):
            if not folder.is_dir():  # unpacked by another process meanwhile
                report(Notice(f"unpacking {name}"))
                _unpack(file.path, folder, url)
            file.path.unlink(missing_ok=True)
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name != "test" else folder


def fetched_text(url: str, report: Report = unreported, hosts: Hosts | None = None) -> str:
    """A small text file at an address, fetched once; its hash is kept like a zip's.

    Raises:
        DownloadError, ChecksumError: as `downloading`.
        DataError: it is not UTF-8 text.
    """
    kept = paths.datasets_folder() / "texts" / f"{lock_name(url)}.txt"
    if not kept.is_file():
        with _fetched(url, None, report, hosts) as file:
            kept.parent.mkdir(parents=True, exist_ok=True)
            file.path.replace(kept)
    try:
        return kept.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{url} is not UTF-8 text") from None


@contextmanager
def _fetched(url: str, sha256: str | None, report: Report, hosts: Hosts | None) -> Iterator[Downloaded]:
    if hub.offline_by_environment():
        raise DownloadError(f"{url} was not fetched yet", "it needs a network, and no offline mode")
    remedy = "where it was replaced on purpose, delete its line from pinned_hashes.json"
    with (
        (hosts or Hosts()).trying(url),
        downloading(url, sha256=sha256 or pinned_hash(url), report=report, room_factor=2.5, remedy=remedy) as file,
    ):
        pin_hash(url, file.sha256)
        yield file


def _unpack(file: Path, folder: Path, url: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive, replacing_folder(folder, durable=False) as temporary:
            for member in archive.infolist():
                for path in (PurePosixPath(member.filename), PureWindowsPath(member.filename)):
                    if path.is_absolute() or path.drive or ".." in path.parts:
                        raise DataError(f"{url} names the file {member.filename!r}, which lies outside: refused")
            check_space(folder.parent, sum(member.file_size for member in archive.infolist()))
            archive.extractall(temporary)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as problem:
        file.unlink(missing_ok=True)
        raise DataError(f"{url} is not a zip that can be read: {problem}") from None
