"""Install a model: fetch, verify, convert and open it under a temporary name, then rename it. Never half a model.

Start reading at `pull`: the whole way from an origin (`resolve` makes one of what a person typed) to an installed
folder. `fetch` brings the files onto this disk, `fill_folder` makes a model folder of them: copied, unpacked or
converted, then opened.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloob_cli import assets
from cloob_cli.atomic_files import replacing_folder, sha256_of
from cloob_cli.checkpoint.folder import file_hashes, is_model_folder, read_config
from cloob_cli.convert import locate
from cloob_cli.errors import (
    ChecksumError,
    ConversionError,
    MissingConfigurationError,
    ModelFolderError,
    RegistryError,
    UnsafeCheckpointError,
)
from cloob_cli.registry import hub, paths
from cloob_cli.registry.entries import check_shape
from cloob_cli.registry.events import Notice, Report, unreported
from cloob_cli.registry.fetch import Fetched, Options, fetch_files, known_hash, offline
from cloob_cli.registry.fill_folder import fill
from cloob_cli.registry.http import remote_size
from cloob_cli.registry.inventory import INSTALL_RECORD, install_record
from cloob_cli.registry.locks import lock
from cloob_cli.registry.pinned_hashes import pin_hash, pinned_hash
from cloob_cli.registry.resolve import Origin
from cloob_cli.registry.storage import in_plain_names, quarantine
from cloob_cli.version import __version__

__all__ = ["Options", "Plan", "plan", "pull"]


@dataclass(frozen=True)
class Plan:
    """The outcome of a pull before it is carried out: `sha256` is the known hash, `held_to` the check without one."""

    name: str
    origin: str
    format: str | None
    folder: Path
    present: bool
    download_bytes: int | None
    sha256: str | None
    held_to: str


def plan(origin: Origin, options: Options) -> Plan:
    """Describe what `pull` would do, without doing it; the other side is only asked for the size.

    Raises:
        RegistryError, ChecksumError: what `pull` would refuse because of what is here already.
    """
    if origin.bundled:
        folder = _bundled(origin)
        present = True
    else:
        folder = paths.installed_folder(origin.name)
        present = is_model_folder(folder)
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
        ConversionError, UnsafeCheckpointError, ModelFolderError: what came is no valid model.
        RegistryError: another model has that name.
    """
    options = options or Options()
    if origin.bundled:
        return _bundled(origin)
    folder = paths.installed_folder(origin.name)
    waiting = Notice(f"another process is installing {origin.name}; waiting for it")
    with ExitStack() as held:
        held.enter_context(lock(f"model:{origin.name}", lambda: report(waiting)))
        _bring_back(folder)
        if is_model_folder(folder) and not options.force:
            _check_same(folder, origin)
            report(Notice(f"{origin.name} is installed already"))
            return folder
        source = fetch_files(origin, options, report, held)
        try:
            with in_plain_names(folder, origin.shown, source.path), replacing_folder(folder) as temporary:
                report(Notice(f"checking and converting {origin.name}"))
                fill(temporary, source, origin, options.config, report)
                if origin.at_hand and not source.known and origin.entry and origin.name == origin.entry.name:
                    check_shape(read_config(temporary), origin.entry)
                _record(temporary, source, origin)
        except (ConversionError, UnsafeCheckpointError, ModelFolderError, ChecksumError) as problem:
            if not source.temporary or not _is_to_blame(source, options, problem):
                raise
            # It came, but it is no model: the next pull must not take it up again.
            kept = quarantine(source.path, source.name)
            raise type(problem)(problem.message, f"the file is quarantined as {kept}") from None
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
    folder = assets.bundled_folder(origin.name)
    if not is_model_folder(folder):
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
    if origin.entry and origin.entry.source.download_bytes:
        return origin.entry.source.download_bytes
    if offline(options):
        return None
    if origin.url:
        return remote_size(origin.url)
    assert origin.reference is not None
    found = hub.listing(origin.reference)
    return sum(file.size or 0 for file in found.files if file.name in hub.wanted(found))


def _held_to(origin: Origin) -> str:
    if origin.bundled:
        return "in the package's entry, for `cloob zoo verify`"
    if origin.url:
        return "not published: pinned on first use"
    if origin.reference:
        return "not given: whatever the Hub lists"
    return "not given: taken as it is"


def _is_to_blame(source: Fetched, options: Options, problem: Exception) -> bool:
    """True where a file that gave no model is itself wrong: its hash is not known, nothing else it needs is missing."""
    return not (source.known or options.config or isinstance(problem, MissingConfigurationError))


def _remember(origin: Origin, source: Fetched, report: Report) -> None:
    """Hold the address to this hash from now on, where nobody publishes one."""
    if origin.url is None:
        return
    if not source.known:
        pin_hash(origin.url, source.sha256)
        report(Notice(f"pinned on first use, as nobody has published its hash: sha256 {source.sha256}"))
    elif pinned_hash(origin.url) not in (None, source.sha256) and origin.sha256_given:
        pin_hash(origin.url, source.sha256, replace=True)
        report(Notice(f"from now on this is the hash that {origin.shown} is held to: sha256 {source.sha256}"))


def _record(folder: Path, source: Fetched, origin: Origin) -> None:
    record: dict[str, Any] = {
        "name": origin.name,
        "origin": str(origin),
        "sha256": source.sha256,
        "published_hash": bool(origin.sha256),
        "commit": source.commit,
        "installed": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "files": file_hashes(folder),
    }
    text = json.dumps({key: value for key, value in record.items() if value is not None}, indent=2)
    (folder / INSTALL_RECORD).write_text(text + "\n", encoding="utf-8")
