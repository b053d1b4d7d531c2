"""The meaning of a name: `find_model` gives the folder of a model to use, `resolve` the origin of a model to pull.

`--model NAME` goes through `find_model`, `cloob zoo pull TARGET` through `resolve`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cloob_cli import assets
from cloob_cli.checkpoint.folder import file_hashes, is_model_folder, open_model
from cloob_cli.convert import TORCH
from cloob_cli.errors import InputError, UnknownModelError, UsageError
from cloob_cli.registry import entries, paths
from cloob_cli.registry.entries import ZooEntry, entry_of_files, refuse_taken_name
from cloob_cli.registry.inventory import default_model, installed_models
from cloob_cli.strict_model import nearest

if TYPE_CHECKING:
    import torch

    from cloob_cli.core.model import CloobModel
    from cloob_cli.registry.hub import Reference

# What a file's name says of its layout; a bundle is recognized by its contents.
_FORMATS_BY_SUFFIX = {".pt": TORCH, ".pth": TORCH, ".pkl": "crowsonkb", ".safetensors": "cloob"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def find_model(name: str | Path | None = None) -> Path:
    """The model folder that `name` means.

    Args:
        name: a zoo name (installed or bundled), a path, `hf://ORG/REPO[@REVISION]`, or None for the default model.
            A zoo name comes before a folder of the same name in the working directory (write `./NAME` for that), also
            where the model is not installed, and what is shipped comes before what is installed.

    Raises:
        UnknownModelError: nothing has that name, or it has an entry but is not installed.
        DownloadError: the Hub did not deliver.
    """
    if name is None:
        name = default_model()
    if isinstance(name, str):
        if name.startswith("hf://"):
            from cloob_cli.registry import hub

            return hub.model_folder(name)
        if _is_plain_name(name):
            name = entries.current_name(name)
            # The bundled model is always the shipped one: nothing that is installed can take its place unasked.
            for folder in (assets.bundled_folder(name), paths.installed_folder(name)):
                if is_model_folder(folder):
                    return folder
            if (assets.zoo_folder() / f"{name}.toml").is_file():
                raise _unknown(name)
    path = Path(os.path.expanduser(name))  # which leaves a ~name alone that nobody has
    if path.is_dir():
        return path
    if path.is_file():
        raise UnknownModelError(f"{path} is a file, not a model folder", "name its folder, or `cloob zoo add` it")
    raise _unknown(str(name))


def find_model_to_share(name: str) -> Path:
    """The same for giving a model away; the folder of a training run stands for the model in it.

    Raises:
        UnknownModelError, DownloadError: as `find_model`.
    """
    folder = find_model(name)
    inner = folder / "model"
    return inner if is_model_folder(inner) and not is_model_folder(folder) else folder


def _is_plain_name(name: str) -> bool:
    return name not in {"", ".", ".."} and not name.startswith((".", "~")) and "/" not in name and "\\" not in name


def _unknown(name: str) -> UnknownModelError:
    if name in entries.entry_names():
        return UnknownModelError(f"the model {name} is not installed", f"cloob zoo pull {name}")
    if not _is_plain_name(name):
        return UnknownModelError(f"there is no model folder {name}", "`cloob zoo list` shows the models with a name")
    near = nearest(name, {*entries.entry_names(), *installed_models()})
    return UnknownModelError(
        f"unknown model {name!r}", f"did you mean {near!r}?" if near else "`cloob zoo list` shows the models that exist"
    )


def load(
    name: str | Path | None = None, device: str | None = None, dtype: torch.dtype | str | None = None
) -> CloobModel:
    """Open the model that `name` means; see `cloob_cli.load`."""
    return open_model(find_model(name), device, dtype)


@dataclass(frozen=True)
class Origin:
    """The place that a model comes from (exactly one of the first four places is set) and how it will be called.

    Attributes:
        sha256: what the file, or the weights in a folder or repository, must hash to.
        sha256_given: the caller said so, not the entry.
        at_hand: what a person fetched from there already.
    """

    name: str
    bundled: bool = False
    url: str | None = None
    reference: Reference | None = None
    path: Path | None = None
    format: str | None = None
    sha256: str | None = None
    sha256_given: bool = False
    entry: ZooEntry | None = None
    at_hand: Path | None = None

    def __str__(self) -> str:
        if self.bundled:
            return "the package"
        return str(self.url or self.reference or self.path)

    @property
    def public(self) -> str:
        """The same for others to read: of a place on this disk only the last part."""
        return self.path.name if self.path else str(self)

    @property
    def shown(self) -> str:
        """The same for messages: what is at hand, and an address without the credentials that it may hold."""
        if self.at_hand:
            return str(self.at_hand)
        if self.url:
            from cloob_cli.registry.http import shown_address

            return shown_address(self.url)
        return str(self)


def resolve(
    target: str,
    name: str | None = None,
    format: str | None = None,
    sha256: str | None = None,
    at_hand: Path | None = None,
) -> Origin:
    """Make sense of a target.

    Args:
        target: an entry's name, `hf://ORG/REPO[@REVISION]`, an https address, or a local file or folder.
        name: how the model is to be called; None takes it from the target.
        format: the layout of a checkpoint; None goes by the entry or the file's name.
        sha256: what the file must hash to; of a folder or repository, the file with its weights.
        at_hand: a file or folder that was fetched from there by other means.

    Raises:
        UnknownModelError: no entry of that name and no such file.
        UsageError: a name that cannot be a folder's; something at hand for a target that is here anyway.
        RegistryError: the name is an entry's, and the target is something else.
    """
    origin = _origin_of(target, name, format, sha256)
    return _with_file_at_hand(origin, at_hand) if at_hand else origin


def _origin_of(target: str, name: str | None, format: str | None, sha256: str | None) -> Origin:
    if (target := entries.current_name(target)) in entries.entry_names():
        return _of_entry(entries.find_entry(target), name, format, sha256)
    if target.startswith("hf://"):
        from cloob_cli.registry.hub import parse_reference

        return _on_the_hub(parse_reference(target), name, format, sha256)
    if "://" in target:
        if known := next((c for c in entries.all_entries() if c.source.url == target), None):
            return _of_entry(known, name, format, sha256)
        from cloob_cli.registry.http import check_address

        check_address(target)
        file_name = PurePosixPath(urlsplit(target).path).name
        chosen = _free_name(name or _stem(file_name))
        return Origin(
            chosen, url=target, format=format or _format_of(file_name), sha256=sha256, sha256_given=sha256 is not None
        )
    path = Path(target).expanduser()
    if not path.exists():
        entries.find_entry(target)  # raises, with the nearest name
    return local(path, name, format, sha256)


def _of_entry(entry: ZooEntry, name: str | None, format: str | None, sha256: str | None) -> Origin:
    from cloob_cli.registry.hub import Reference

    source = entry.source
    chosen = _free_name(name or entry.name, entry)
    if chosen == entry.name and source.sha256 and sha256 not in (None, source.sha256):
        raise UsageError(
            f"the published sha256 of {entry.name} is {source.sha256}", "another file needs another name: --name NAME"
        )
    if source.bundled and chosen != entry.name:  # the package's own keeps its name; this is to be a copy
        return local(assets.bundled_folder(entry.name), chosen, format, sha256)
    return Origin(
        name=chosen,
        bundled=source.bundled,
        url=source.url,
        reference=Reference(source.repository, source.revision) if source.repository else None,
        format=format or source.format,
        sha256=sha256 or source.sha256,
        sha256_given=sha256 is not None,
        entry=entry,
    )


def _on_the_hub(reference: Reference, name: str | None, format: str | None, sha256: str | None) -> Origin:
    known = next((c for c in entries.all_entries() if c.source.repository == reference.repository), None)
    if known and reference.revision in (None, known.source.revision):
        return _of_entry(known, name, format, sha256)
    chosen = _free_name(name or reference.repository.split("/")[1])
    if known:  # another revision: the entry still says how it is converted
        return replace(_of_entry(known, chosen, format, sha256), reference=reference)
    return Origin(chosen, reference=reference, format=format, sha256=sha256, sha256_given=sha256 is not None)


def _with_file_at_hand(origin: Origin, path: Path) -> Origin:
    from cloob_cli.registry.bundle import is_bundle

    if not path.exists():
        raise InputError(f"there is nothing at {path}")
    if origin.path or origin.bundled:
        raise UsageError(f"{origin.name} is on this machine already", "--from is for what would be fetched")
    if path.is_file() and is_bundle(path):
        raise UsageError(
            f"{path} is a bundle, not the file at {origin}", "install it under a name of its own: --name NAME"
        )
    if origin.url and path.is_dir():
        raise UsageError(f"{path} is a folder, {origin} a file", "give the file")
    if origin.reference and not origin.sha256:
        raise UsageError(
            f"nothing is known that would show {path} to be from {origin}",
            "give the sha256 of its weights, as the Hub shows it: --sha256",
        )
    return replace(origin, at_hand=path.resolve())


def local(path: Path, name: str | None = None, format: str | None = None, sha256: str | None = None) -> Origin:
    """Something on this disk as an origin; a bundle says its own name.

    Raises:
        InputError: there is nothing at `path`.
        UsageError: a name that cannot be a folder's.
        RegistryError: the name is an entry's, and these are not that entry's files; an invalid bundle.
    """
    from cloob_cli.registry.bundle import bundle_hashes, bundle_name, is_bundle

    if not path.exists():
        raise InputError(f"there is nothing at {path}")
    path = path.resolve()
    if not is_model_folder(path) and is_model_folder(path / "model"):  # a training run keeps its model there
        name, path = name or path.name, path / "model"
    bundle = path.is_file() and is_bundle(path)
    if bundle:
        name = name or bundle_name(path)
    elif name is None:
        name = _stem(path.name) if path.is_file() else path.name
    entry = None
    if name in entries.entry_names() and (bundle or is_model_folder(path)):
        hashes = bundle_hashes(path) if bundle else file_hashes(path)
        entry = entry_of_files(name, hashes)
    return Origin(
        _free_name(name, entry),
        path=path,
        format=format or _format_of(path.name),
        sha256=sha256,
        sha256_given=sha256 is not None,
        entry=entry,
    )


def _format_of(file_name: str) -> str | None:
    return _FORMATS_BY_SUFFIX.get(PurePosixPath(file_name).suffix.lower())


def _stem(file_name: str) -> str:
    return re.sub(r"(\.cloob)?\.(tar|pt|pth|pkl|safetensors)$", "", file_name, flags=re.IGNORECASE)


def _free_name(name: str, entry: ZooEntry | None = None) -> str:
    refuse_taken_name(checked_name(name), entry)
    return name


def checked_name(name: str) -> str:
    """The name itself; raises UsageError where it could not be a folder's."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name", "give one with --name: letters, digits, '.', '_' and '-'"
        )
    return name
