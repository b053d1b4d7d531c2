"""What a person means by the target of a pull: a card, the Hub, an address, or something on this disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cloob_cli.errors import InputError, UsageError
from cloob_cli.registry import cards
from cloob_cli.registry.bundle import bundle_hashes, bundle_name, is_bundle
from cloob_cli.registry.cards import Card
from cloob_cli.registry.claims import card_of_files, hashes_of_folder, refuse_taken_name
from cloob_cli.registry.folder import KEPT_FILES, is_model_folder
from cloob_cli.registry.hub import Reference, parse_reference

# What a file's name says of its layout; a bundle is recognised by its contents.
_FORMATS_BY_SUFFIX = {".pt": "mljku", ".pth": "mljku", ".pkl": "crowsonkb", ".safetensors": "cloob"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from (exactly one of the first four is set) and how it will be called."""

    name: str
    bundled: bool = False
    url: str | None = None
    reference: Reference | None = None
    path: Path | None = None
    format: str | None = None
    sha256: str | None = None
    card: Card | None = None

    def __str__(self) -> str:
        if self.bundled:
            return "the package"
        return str(self.url or self.reference or self.path)

    @property
    def public(self) -> str:
        """The same for others to read: of a place on this disk only the last part."""
        return self.path.name if self.path else str(self)


def resolve(target: str, name: str | None = None, format: str | None = None, sha256: str | None = None) -> Origin:
    """Make sense of a target.

    Args:
        target: a card's name, `hf://ORG/REPO[@REVISION]`, an https address, or a local file or folder.
        name: how the model is to be called; None takes it from the target.
        format: the layout of a checkpoint; None goes by the card or the file's name.
        sha256: what the file at an address must hash to.

    Raises:
        UnknownModelError: no card of that name and no such file.
        UsageError: a name that cannot be a folder's.
        RegistryError: the name is a card's, and the target is something else.
    """
    if target in cards.card_names():
        return _of_card(cards.card(target), name, format, sha256)
    if target.startswith("hf://"):
        return _on_the_hub(parse_reference(target), name, format, sha256)
    if "://" in target:
        if known := next((c for c in cards.all_cards() if c.source.url == target), None):
            return _of_card(known, name, format, sha256)
        file_name = PurePosixPath(urlsplit(target).path).name
        chosen = _free_name(name or _stem(file_name))
        return Origin(chosen, url=target, format=format or _format_of(file_name), sha256=sha256)
    path = Path(target).expanduser()
    if not path.exists():
        cards.card(target)  # raises, with the nearest name
    return local(path, name, format)


def _of_card(card: Card, name: str | None, format: str | None, sha256: str | None) -> Origin:
    source = card.source
    return Origin(
        name=_free_name(name or card.name, card),
        bundled=source.bundled,
        url=source.url,
        reference=Reference(source.repository, source.revision) if source.repository else None,
        format=format or source.format,
        sha256=sha256 or source.sha256,
        card=card,
    )


def _on_the_hub(reference: Reference, name: str | None, format: str | None, sha256: str | None) -> Origin:
    known = next((c for c in cards.all_cards() if c.source.repository == reference.repository), None)
    if known and reference.revision in (None, known.source.revision):
        return _of_card(known, name, format, sha256)
    chosen = _free_name(name or reference.repository.split("/")[1])
    if known:  # another revision: the card still says how it is converted
        return replace(_of_card(known, chosen, format, sha256), reference=reference)
    return Origin(chosen, reference=reference, format=format)


def local(path: Path, name: str | None = None, format: str | None = None) -> Origin:
    """Something on this disk as an origin; a bundle says its own name.

    Raises:
        InputError: there is nothing at `path`.
        UsageError: a name that cannot be a folder's.
        RegistryError: the name is a card's, and these are not that card's files; an unsound bundle.
    """
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
    card = None
    if name in cards.card_names() and (bundle or is_model_folder(path)):
        hashes = bundle_hashes(path) if bundle else hashes_of_folder(path, KEPT_FILES)
        card = card_of_files(name, hashes)
    return Origin(_free_name(name, card), path=path, format=format or _format_of(path.name), card=card)


def _format_of(file_name: str) -> str | None:
    return _FORMATS_BY_SUFFIX.get(PurePosixPath(file_name).suffix.lower())


def _stem(file_name: str) -> str:
    return re.sub(r"(\.cloob)?\.(tar|pt|pth|pkl|safetensors)$", "", file_name, flags=re.IGNORECASE)


def _free_name(name: str, card: Card | None = None) -> str:
    refuse_taken_name(checked_name(name), card)
    return name


def checked_name(name: str) -> str:
    """The name itself; raises UsageError where it could not be a folder's."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name", "give one with --name: letters, digits, '.', '_' and '-'"
        )
    return name
