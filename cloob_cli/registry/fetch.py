"""Bring the files that a model is made from here, from an address, the Hub or this disk, and check their hash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cloob_cli.atomic_files import sha256_of
from cloob_cli.convert import locate
from cloob_cli.convert.folder_formats import OPEN_CLIP_WEIGHTS, TRANSFORMERS_WEIGHTS
from cloob_cli.errors import ChecksumError, DownloadError
from cloob_cli.registry import download, hub, paths
from cloob_cli.registry.events import Report
from cloob_cli.registry.http import RetryPolicy
from cloob_cli.registry.hub import Reference
from cloob_cli.registry.inventory import folder_size
from cloob_cli.registry.pinned_hashes import pinned_hash
from cloob_cli.registry.resolve import Origin
from cloob_cli.registry.storage import check_space, free_space

# The converted copy stands beside the download until it is valid.
_ROOM_FACTOR = 2.0

# What the Hub holds of a tokenizer in a repository of its own (rinna's).
_TOKENIZER_FILES = ("spiece.model", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")


@dataclass(frozen=True)
class Options:
    """Options of a pull."""

    force: bool = False
    offline: bool = False
    config: Path | None = None
    retry_policy: RetryPolicy | None = None
    free: Callable[[Path], int] = free_space


@dataclass(frozen=True)
class Fetched:
    """A file or folder on this disk, and what is to be noted of how it came here.

    Attributes:
        sha256: of the file, or of the folder's weights.
        known: that hash was known before.
        temporary: it is in the way once the model is installed.
    """

    path: Path
    name: str
    sha256: str
    known: bool = False
    commit: str | None = None
    tokenizer: Path | None = None
    temporary: bool = False


def known_hash(origin: Origin) -> str | None:
    """The hash that the file must have, from the caller, the entry or the pinned hashes; None where none is known."""
    return origin.sha256 or (pinned_hash(origin.url) if origin.url else None)


def fetch_files(origin: Origin, options: Options, report: Report, held: ExitStack) -> Fetched:
    """Fetch a model, or find it on this disk.

    Args:
        held: what keeps the file from other processes; it is to be closed when the file is no longer needed.

    Raises:
        DownloadError, DiskSpaceError: it could not be fetched, or would not fit.
        ChecksumError: it is another file than the known one.
        ConversionError: a folder without weights.
    """
    if origin.at_hand:
        return _at_hand(origin, origin.at_hand, options)
    if origin.url:
        return _from_address(origin, origin.url, options, report, held)
    if origin.reference:
        return _from_the_hub(origin, origin.reference, options, report)
    assert origin.path is not None  # an origin is in one of these places
    return _at_hand(origin, origin.path, options)


def offline(options: Options) -> bool:
    """True where the network must not be used."""
    return options.offline or hub.offline_by_environment()


def _at_hand(origin: Origin, path: Path, options: Options) -> Fetched:
    size = folder_size(path) if path.is_dir() else path.stat().st_size
    check_space(paths.home(), size, options.free)
    known = known_hash(origin)
    found = sha256_of(locate(path))
    hint = (
        f"fetch it again from {origin}" if origin.at_hand else "look for the right file, or at the hash that you gave"
    )
    _check(str(path), found, known, hint)
    return Fetched(path, path.name, found, known=known is not None)


def _from_address(origin: Origin, url: str, options: Options, report: Report, held: ExitStack) -> Fetched:
    known = known_hash(origin)
    if offline(options):
        done = held.enter_context(download.finished(url))
        if done is None:
            raise DownloadError(
                f"{origin.name} is not on this machine, and offline mode forbids to fetch it",
                "leave out --offline and HF_HUB_OFFLINE, or give a file fetched elsewhere with --from FILE",
            )
        _check(origin.public, done.sha256, known, _remedy(origin).replace("{found}", done.sha256))
        got = done
    else:
        got = held.enter_context(
            download.downloading(
                url,
                sha256=known,
                report=report,
                retry_policy=options.retry_policy,
                room_factor=_ROOM_FACTOR,
                free=options.free,
                remedy=_remedy(origin),
            )
        )
    name = PurePosixPath(urlsplit(url).path).name
    return Fetched(got.path, name, got.sha256, known=known is not None, temporary=True)


def _remedy(origin: Origin) -> str:
    """The hint for a file with another hash, `{found}`; where it was damaged on the way, pulling again helps."""
    again = "if it may be damaged, pull again; "
    if origin.sha256_given:
        return f"{again}if it is right, give its hash: --sha256 {{found}}"
    if origin.sha256:
        return f"{again}if its authors replaced it, another name can have it: --name NAME --sha256 {{found}}"
    return f"{again}to accept that it was replaced: the same command with --sha256 {{found}}"


def _from_the_hub(origin: Origin, reference: Reference, options: Options, report: Report) -> Fetched:
    tokens = origin.entry.source.tokenizer_repository if origin.entry else None
    tokenizer = None
    if offline(options):
        folder = hub.cached(reference, hub.READABLE_FILES)
        commit = folder.name
        if tokens:
            tokenizer = hub.cached(Reference(tokens), _TOKENIZER_FILES)
    else:
        found = hub.listing(reference)
        _check_listed(origin, found)
        folder, commit = hub.snapshot(found, hub.wanted(found), report, options.force), found.commit
        if tokens:
            tokenizer = hub.snapshot(hub.listing(Reference(tokens)), _TOKENIZER_FILES, report)
    check_space(paths.home(), folder_size(folder), options.free)
    weights = locate(folder)
    sha256 = sha256_of(weights)
    _check(f"{reference}: {weights.name}", sha256, origin.sha256, _OTHER_REVISION)
    return Fetched(folder, reference.repository, sha256, origin.sha256 is not None, commit, tokenizer)


_OTHER_REVISION = "name the revision that has it, as hf://ORG/REPO@COMMIT, or look at the hash that you gave"


def _check_listed(origin: Origin, found: hub.Listing) -> None:
    """Raise ChecksumError, before anything is fetched, where the Hub lists another file than the known one."""
    names = hub.wanted(found)
    listed = {file.name: file.sha256 for file in found.files if file.name in names}
    weights = next((name for name in (*OPEN_CLIP_WEIGHTS, *TRANSFORMERS_WEIGHTS) if listed.get(name)), None)
    if weights:
        _check(f"{found.reference}: {weights}", str(listed[weights]), origin.sha256, _OTHER_REVISION)


def _check(what: str, found: str, expected: str | None, hint: str) -> None:
    if expected not in (None, found):
        raise ChecksumError(f"{what} is not the file that was expected: sha256 {found}, expected {expected}", hint)
