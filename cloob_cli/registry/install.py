"""Installing a model: fetched, verified, converted and opened under a temporary name, then renamed. Never half a model.

`pull` is the whole way from a target to an installed folder; `add` is the same for what is already on this disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cloob_cli import __version__
from cloob_cli.errors import (
    ChecksumError,
    ConversionError,
    DownloadError,
    ModelFolderError,
    RegistryError,
    UnsafeCheckpointError,
)
from cloob_cli.files import replacing_folder, sha256_of
from cloob_cli.registry import fetch, hub, store
from cloob_cli.registry.bundle import extract_bundle, is_bundle
from cloob_cli.registry.cards import Card
from cloob_cli.registry.claims import refuse_taken_name
from cloob_cli.registry.events import Notice, Report, unreported
from cloob_cli.registry.hub import Reference
from cloob_cli.registry.inventory import INSTALL_RECORD, folder_size, install_record, read_json_object
from cloob_cli.registry.locks import lock
from cloob_cli.registry.model_card import model_card
from cloob_cli.registry.origin import Origin
from cloob_cli.registry.storage import check_space, free_space, set_aside
from cloob_cli.registry.transfer import Patience
from cloob_cli.registry.trust import trust, trusted_hash

if TYPE_CHECKING:
    from cloob_cli.registry.convert import Converted


# The converted copy stands beside the download until it is sound.
_ROOM_FACTOR = 2.0

# What the Hub holds of a model that is not in our form (rinna's).
_UPSTREAM_FILES = (store.CONFIG_FILE, store.WEIGHTS_FILE, "pytorch_model.bin", store.README_FILE)
_TOKENIZER_FILES = ("spiece.model", "tokenizer_config.json", "special_tokens_map.json", store.TOKENIZER_FILE)


@dataclass(frozen=True)
class Options:
    """How to pull."""

    force: bool = False
    offline: bool = False
    config: Path | None = None
    patience: Patience | None = None
    free: Callable[[Path], int] = free_space


@dataclass(frozen=True)
class Plan:
    """What a pull would do."""

    name: str
    origin: str
    format: str | None
    folder: Path
    present: bool
    download_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class _Fetched:
    """A file or folder on this disk, and what is to be noted of how it came here."""

    path: Path
    name: str
    sha256: str | None = None
    first_use: bool = False
    commit: str | None = None
    tokenizer: Path | None = None
    temporary: bool = False


def plan(origin: Origin, options: Options) -> Plan:
    """What `pull` would do, without doing it; the other side is only asked for the size."""
    folder = store.installed_folder(origin.name)
    size = origin.card.source.download_bytes if origin.card else None
    if size is None and not _offline(options):
        if origin.url:
            size = fetch.remote_size(origin.url)
        elif origin.reference:
            found = hub.listing(origin.reference)
            size = sum(file.size or 0 for file in found.files if file.name in _wanted(found))
    return Plan(
        name=origin.name,
        origin=str(origin),
        format=origin.format,
        folder=store.bundled_folder(origin.name) if origin.bundled else folder,
        present=store.is_model_folder(store.bundled_folder(origin.name) if origin.bundled else folder),
        download_bytes=size,
        sha256=origin.sha256 or (trusted_hash(origin.url) if origin.url else None),
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
    with lock(f"model:{origin.name}", lambda: report(waiting)):
        _bring_back(folder)
        if store.is_model_folder(folder) and not options.force:
            _check_same(folder, origin)
            report(Notice(f"{origin.name} is installed already"))
            return folder
        fetched = _fetch(origin, options, report)
        try:
            with replacing_folder(folder) as temporary:
                report(Notice(f"checking and converting {origin.name}"))
                _fill(temporary, fetched, origin, options, report)
                _record(temporary, fetched, origin)
        except (ConversionError, UnsafeCheckpointError, ModelFolderError, ChecksumError) as problem:
            if fetched.temporary:  # it came, but it is no model: the next pull must not take it up again
                aside = set_aside(fetched.path, fetched.name)
                raise type(problem)(problem.message, f"the file was set aside as {aside}") from None
            raise
        if fetched.first_use and origin.url and fetched.sha256:
            trust(origin.url, fetched.sha256)
            report(Notice(f"trusted on first use, as nobody has published its hash: sha256 {fetched.sha256}"))
        if fetched.temporary:
            fetched.path.unlink(missing_ok=True)
    return folder


def convert_to_folder(
    checkpoint: Path, folder: Path, format: str | None = None, config: Path | None = None
) -> list[str]:
    """Convert another program's checkpoint to a model folder.

    Returns:
        The names of the source's tensors that have no place in the model.

    Raises:
        UnsafeCheckpointError, ConversionError: it is refused, or does not have the layout of its format.
        RegistryError: the folder has the name of a card.
    """
    from cloob_cli.registry.convert import convert_checkpoint

    refuse_taken_name(folder.name, remedy="name another folder")
    converted = convert_checkpoint(checkpoint, format, config, name=folder.name)
    _save(folder, converted, checkpoint.name, None, None)
    return converted.ignored


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
    return folder


def _check_same(folder: Path, origin: Origin) -> None:
    before = install_record(folder).get("origin")
    if before != str(origin):
        raise RegistryError(
            f"{origin.name} is installed already, from {before or 'elsewhere'}",
            "give another name with --name, or replace it with --force",
        )


# ---------------------------------------------------------------- fetching


def _fetch(origin: Origin, options: Options, report: Report) -> _Fetched:
    if origin.url:
        return _fetch_url(origin, origin.url, options, report)
    if origin.reference:
        return _fetch_hub(origin, origin.reference, options, report)
    assert origin.path is not None  # an origin is in one of these places
    size = folder_size(origin.path) if origin.path.is_dir() else origin.path.stat().st_size
    check_space(store.home(), size, options.free)
    return _Fetched(origin.path, origin.path.name)


def _fetch_url(origin: Origin, url: str, options: Options, report: Report) -> _Fetched:
    known = origin.sha256 or trusted_hash(url)
    if _offline(options):
        done = fetch.finished(url)
        if done is None:
            raise DownloadError(f"{origin.name} is not on this machine, and offline mode forbids to fetch it")
        got = done
    else:
        got = fetch.download(
            url, sha256=known, report=report, patience=options.patience, room_factor=_ROOM_FACTOR, free=options.free
        )
    name = PurePosixPath(urlsplit(url).path).name
    return _Fetched(got.path, name, got.sha256, first_use=known is None, temporary=True)


def _fetch_hub(origin: Origin, reference: Reference, options: Options, report: Report) -> _Fetched:
    tokens = origin.card.source.tokenizer_repository if origin.card else None
    if _offline(options):
        folder = hub.cached(reference, (*store.KEPT_FILES, *_UPSTREAM_FILES, *_TOKENIZER_FILES))
        commit = folder.name
        tokenizer = hub.cached(hub.Reference(tokens), _TOKENIZER_FILES) if tokens else None
    else:
        found = hub.listing(reference)
        folder, commit = hub.snapshot(found, _wanted(found), report, options.force), found.commit
        tokenizer = hub.snapshot(hub.listing(hub.Reference(tokens)), _TOKENIZER_FILES, report) if tokens else None
    check_space(store.home(), folder_size(folder), options.free)
    return _Fetched(folder, reference.repository, commit=commit, tokenizer=tokenizer)


def _wanted(found: hub.Listing) -> list[str]:
    names = {file.name for file in found.files}
    wanted = {*store.KEPT_FILES, *_UPSTREAM_FILES, *_TOKENIZER_FILES}
    if store.WEIGHTS_FILE in names:
        wanted.discard("pytorch_model.bin")  # the same weights as a pickle
    return sorted(names & wanted)


def _offline(options: Options) -> bool:
    return options.offline or hub.offline_by_environment()


# ---------------------------------------------------------------- filling the folder


def _fill(folder: Path, fetched: _Fetched, origin: Origin, options: Options, report: Report) -> None:
    source = fetched.path
    if source.is_file() and is_bundle(source):
        extract_bundle(source, folder, list(store.KEPT_FILES))
    elif source.is_dir() and _is_ours(source):
        for name in store.KEPT_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    elif source.is_file() and origin.format == "cloob":
        _fill_from_weights(folder, source)
    else:
        _convert(folder, fetched, origin, options, report)
        return
    _prove(folder)


def _prove(folder: Path) -> None:
    """Open the model as anybody would; hold it against the fingerprint that it brought, or store its first one."""
    from cloob_cli.registry.fingerprint import check_fingerprint, write_fingerprint

    if (folder / store.FINGERPRINT_FILE).is_file():
        check_fingerprint(folder)
    else:
        write_fingerprint(folder)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is in our form; a config.json of transformers has a model_type, ours has a format_version."""
    try:
        store.read_config(folder)
    except ModelFolderError:
        # Ours, but spoilt, or another program's: what its configuration says of itself decides.
        return store.is_model_folder(folder) and "format_version" in read_json_object(folder / store.CONFIG_FILE)
    return True


def _fill_from_weights(folder: Path, weights: Path) -> None:
    shutil.copyfile(weights, folder / store.WEIGHTS_FILE)
    config = store.read_config(folder)
    store.write_config(folder, config)
    tokenizer = weights.with_name(store.TOKENIZER_FILE)
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, folder / store.TOKENIZER_FILE)
    elif config.tokenizer.kind == "clip":
        from cloob_cli.data.text import clip_tokenizer

        clip_tokenizer(config.text.context_length).save(folder / store.TOKENIZER_FILE)


def _convert(folder: Path, fetched: _Fetched, origin: Origin, options: Options, report: Report) -> None:
    from cloob_cli.registry.convert import convert_checkpoint

    source = origin.card.source if origin.card else None
    converted = convert_checkpoint(
        fetched.path,
        None if origin.format == "cloob" else origin.format,
        options.config or (source.config if source else None),
        source.architecture if source else None,
        name=origin.name,
        tokenizer=fetched.tokenizer,
    )
    if converted.ignored:
        report(Notice(f"left out, as inference does not need them: {', '.join(converted.ignored)}"))
    _save(folder, converted, origin.public, fetched.sha256, origin.card)


def _save(folder: Path, converted: Converted, origin: str, sha256: str | None, card: Card | None) -> None:
    model = converted.model
    source = model.config.source | {"origin": origin} | ({"sha256": sha256} if sha256 else {})
    model.config = model.config.model_copy(update={"source": source})
    text = model_card(model.config.name, model.config, card)
    store.save_model(folder, model, converted.tokenizer, card_text=text)


def _record(folder: Path, fetched: _Fetched, origin: Origin) -> None:
    files = {name: sha256_of(folder / name) for name in store.KEPT_FILES if (folder / name).is_file()}
    record: dict[str, Any] = {
        "name": origin.name,
        "origin": str(origin),
        "sha256": fetched.sha256,
        "published_hash": bool(origin.sha256),
        "commit": fetched.commit,
        "installed": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "files": files,
    }
    text = json.dumps({key: value for key, value in record.items() if value is not None}, indent=2)
    (folder / INSTALL_RECORD).write_text(text + "\n", encoding="utf-8")
