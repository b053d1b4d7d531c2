"""Installing a model: fetched, verified, converted and opened under a temporary name, then renamed. Never half a model.

`pull` is the whole way from an origin (`origin.resolve` makes one of what a person typed) to an installed folder:
`obtain` brings the files onto this disk, `fill` makes a model folder of them.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloob_cli import __version__
from cloob_cli.convert import locate
from cloob_cli.errors import (
    ChecksumError,
    ConversionError,
    MissingConfigurationError,
    ModelFolderError,
    RegistryError,
    UnsafeCheckpointError,
)
from cloob_cli.files import replacing_folder, sha256_of
from cloob_cli.registry import fetch, hub, store
from cloob_cli.registry.claims import check_shape
from cloob_cli.registry.events import Notice, Report, unreported
from cloob_cli.registry.fill import fill_folder
from cloob_cli.registry.inventory import INSTALL_RECORD, install_record
from cloob_cli.registry.locks import lock
from cloob_cli.registry.obtain import Obtained, Options, known_hash, obtain, offline, wanted
from cloob_cli.registry.origin import Origin
from cloob_cli.registry.storage import in_plain_names, quarantine
from cloob_cli.registry.trust import trust, trusted_hash

__all__ = ["Options", "Plan", "plan", "pull"]


@dataclass(frozen=True)
class Plan:
    """What a pull would do. `sha256` is what the file will be held to; `held_to` says what else it is held to."""

    name: str
    origin: str
    format: str | None
    folder: Path
    present: bool
    download_bytes: int | None
    sha256: str | None
    held_to: str


def plan(origin: Origin, options: Options) -> Plan:
    """What `pull` would do, without doing it; the other side is only asked for the size.

    Raises:
        RegistryError, ChecksumError: what `pull` would refuse because of what is here already.
    """
    if origin.bundled:
        folder = _bundled(origin)
        present = True
    else:
        folder = store.installed_folder(origin.name)
        present = store.is_model_folder(folder)
        if present and not options.force:
            _check_same(folder, origin)
    return Plan(
        name=origin.name,
        origin=f"{origin.at_hand}, in place of {origin}" if origin.at_hand else str(origin),
        format=origin.format,
        folder=folder,
        present=present,
        download_bytes=_download_bytes(origin, options),
        sha256=known_hash(origin),
        held_to=_held_to(origin),
    )


def pull(origin: Origin, options: Options | None = None, report: Report = unreported) -> Path:
    """Install a model and return its folder. A model that is installed already is left as it is, unless forced.

    Raises:
        DownloadError, DiskSpaceError, ChecksumError: it could not be fetched.
        ConversionError, UnsafeCheckpointError, ModelFolderError: what came is no sound model.
        RegistryError: another model has that name.
    """
    options = options or Options()
    if origin.bundled:
        return _bundled(origin)
    folder = store.installed_folder(origin.name)
    waiting = Notice(f"another process is installing {origin.name}; waiting for it")
    with ExitStack() as held:
        held.enter_context(lock(f"model:{origin.name}", lambda: report(waiting)))
        _bring_back(folder)
        if store.is_model_folder(folder) and not options.force:
            _check_same(folder, origin)
            report(Notice(f"{origin.name} is installed already"))
            return folder
        source = obtain(origin, options, report, held)
        try:
            with in_plain_names(folder, origin.shown, source.path), replacing_folder(folder) as temporary:
                report(Notice(f"checking and converting {origin.name}"))
                _fill(temporary, source, origin, options, report)
                _record(temporary, source, origin)
        except (ConversionError, UnsafeCheckpointError, ModelFolderError, ChecksumError) as problem:
            if not source.temporary or not _is_to_blame(source, options, problem):
                raise
            # It came, but it is no model: the next pull must not take it up again.
            aside = quarantine(source.path, source.name)
            raise type(problem)(problem.message, f"the file was set aside as {aside}") from None
        _remember(origin, source, report)
        if source.temporary:
            source.path.unlink(missing_ok=True)
    return folder


def _bring_back(folder: Path) -> None:
    """Undo a replacement that ended between its two renames (a crash at the worst moment)."""
    if not folder.exists():
        for aside in sorted(folder.parent.glob(f".{folder.name}.*.replaced")):
            os.replace(aside, folder)
            return


def _bundled(origin: Origin) -> Path:
    folder = store.bundled_folder(origin.name)
    if not store.is_model_folder(folder):
        raise RegistryError(f"this installation lacks the bundled model {origin.name}", "install the package again")
    if origin.sha256 and (found := sha256_of(locate(folder))) != origin.sha256:
        raise ChecksumError(f"the bundled {origin.name} has other weights: sha256 {found}, expected {origin.sha256}")
    return folder


def _check_same(folder: Path, origin: Origin) -> None:
    record = install_record(folder)
    before = record.get("origin")
    if before != str(origin):
        raise RegistryError(
            f"{origin.name} is installed already, from {before or 'elsewhere'}",
            "give another name with --name, or replace it with --force",
        )
    if origin.sha256 and record.get("sha256") != origin.sha256:
        found = record.get("sha256")
        other = f"from a file with the sha256 {found}" if found else "and the hash of its file was not recorded"
        raise ChecksumError(f"{origin.name} is installed already, {other}", "replace it with --force")


def _download_bytes(origin: Origin, options: Options) -> int | None:
    if origin.at_hand or origin.path or origin.bundled:
        return 0
    if origin.card and origin.card.source.download_bytes:
        return origin.card.source.download_bytes
    if offline(options):
        return None
    if origin.url:
        return fetch.remote_size(origin.url)
    assert origin.reference is not None
    found = hub.listing(origin.reference)
    return sum(file.size or 0 for file in found.files if file.name in wanted(found))


def _held_to(origin: Origin) -> str:
    if origin.bundled:
        return "in the package's card, for `cloob zoo verify`"
    if origin.url:
        return "not published: trusted on first use"
    if origin.reference:
        return "not given: whatever the Hub lists"
    return "not given: taken as it is"


def _fill(folder: Path, source: Obtained, origin: Origin, options: Options, report: Report) -> None:
    fill_folder(folder, source, origin, options.config, report)
    if origin.at_hand and not source.known and origin.card and origin.name == origin.card.name:
        check_shape(store.read_config(folder), origin.card)


def _is_to_blame(source: Obtained, options: Options, problem: Exception) -> bool:
    """Whether a file that gave no model is itself wrong: not where its hash is right, or its configuration missing."""
    return not (source.known or options.config or isinstance(problem, MissingConfigurationError))


def _remember(origin: Origin, source: Obtained, report: Report) -> None:
    """Hold the address to this hash from now on, where nobody publishes one."""
    if origin.url is None:
        return
    if not source.known:
        trust(origin.url, source.sha256)
        report(Notice(f"trusted on first use, as nobody has published its hash: sha256 {source.sha256}"))
    elif trusted_hash(origin.url) not in (None, source.sha256) and origin.sha256_given:
        trust(origin.url, source.sha256, replace=True)
        report(Notice(f"from now on this is the hash that {origin.shown} is held to: sha256 {source.sha256}"))


def _record(folder: Path, source: Obtained, origin: Origin) -> None:
    files = {name: sha256_of(folder / name) for name in store.KEPT_FILES if (folder / name).is_file()}
    record: dict[str, Any] = {
        "name": origin.name,
        "origin": str(origin),
        "sha256": source.sha256,
        "published_hash": bool(origin.sha256),
        "commit": source.commit,
        "installed": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "files": files,
    }
    text = json.dumps({key: value for key, value in record.items() if value is not None}, indent=2)
    (folder / INSTALL_RECORD).write_text(text + "\n", encoding="utf-8")
