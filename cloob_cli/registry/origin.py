"""What a person means by the target of a pull: a card, the Hub, an address, or something on this disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cloob_cli import assets
from cloob_cli.checkpoint.folder import KEPT_FILES, is_model_folder
from cloob_cli.errors import InputError, UsageError
from cloob_cli.registry import cards
from cloob_cli.registry.bundle import bundle_hashes, bundle_name, is_bundle
from cloob_cli.registry.cards import Card
from cloob_cli.registry.claims import card_of_files, hashes_of_folder, refuse_taken_name
from cloob_cli.registry.connection import check_address, shown_address
from cloob_cli.registry.hub import Reference, parse_reference

# What a file's name says of its layout; a bundle is recognized by its contents.
_FORMATS_BY_SUFFIX = {".pt": "mljku", ".pth": "mljku", ".pkl": "crowsonkb", ".safetensors": "cloob"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from (exactly one of the first four places is set) and how it will be called.

    Attributes:
        sha256: what the file, or the weights in a folder or repository, must hash to.
        sha256_given: the caller said so, not the card.
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
    card: Card | None = None
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
        return shown_address(self.url) if self.url else str(self)


def resolve(
    target: str,
    name: str | None = None,
    format: str | None = None,
    sha256: str | None = None,
    at_hand: Path | None = None,
) -> Origin:
    """Make sense of a target.

    Args:
        target: a card's name, `hf://ORG/REPO[@REVISION]`, an https address, or a local file or folder.
        name: how the model is to be called; None takes it from the target.
        format: the layout of a checkpoint; None goes by the card or the file's name.
        sha256: what the file must hash to; of a folder or repository, the file with its weights.
        at_hand: a file or folder that was fetched from there by other means.

    Raises:
        UnknownModelError: no card of that name and no such file.
        UsageError: a name that cannot be a folder's; something at hand for a target that is here anyway.
        RegistryError: the name is a card's, and the target is something else.
    """
    origin = _origin_of(target, name, format, sha256)
    return _with_file_at_hand(origin, at_hand) if at_hand else origin


def _origin_of(target: str, name: str | None, format: str | None, sha256: str | None) -> Origin:
    if target in cards.card_names():
        return _of_card(cards.card(target), name, format, sha256)
    if target.startswith("hf://"):
        return _on_the_hub(parse_reference(target), name, format, sha256)
    if "://" in target:
        if known := next((c for c in cards.all_cards() if c.source.url == target), None):
            return _of_card(known, name, format, sha256)
        check_address(target)
        file_name = PurePosixPath(urlsplit(target).path).name
        chosen = _free_name(name or _stem(file_name))
        return Origin(
            chosen, url=target, format=format or _format_of(file_name), sha256=sha256, sha256_given=sha256 is not None
        )
    path = Path(target).expanduser()
    if not path.exists():
        cards.card(target)  # raises, with the nearest name
    return local(path, name, format, sha256)


def _of_card(card: Card, name: str | None, format: str | None, sha256: str | None) -> Origin:
    source = card.source
    chosen = _free_name(name or card.name, card)
    if chosen == card.name and source.sha256 and sha256 not in (None, source.sha256):
        raise UsageError(
            f"the published sha256 of {card.name} is {source.sha256}", "another file needs another name: --name NAME"
        )
    if source.bundled and chosen != card.name:  # the package's own keeps its name; this is to be a copy
        return local(assets.bundled_weights_folder() / card.name, chosen, format, sha256)
    return Origin(
        name=chosen,
        bundled=source.bundled,
        url=source.url,
        reference=Reference(source.repository, source.revision) if source.repository else None,
        format=format or source.format,
        sha256=sha256 or source.sha256,
        sha256_given=sha256 is not None,
        card=card,
    )


def _on_the_hub(reference: Reference, name: str | None, format: str | None, sha256: str | None) -> Origin:
    known = next((c for c in cards.all_cards() if c.source.repository == reference.repository), None)
    if known and reference.revision in (None, known.source.revision):
        return _of_card(known, name, format, sha256)
    chosen = _free_name(name or reference.repository.split("/")[1])
    if known:  # another revision: the card still says how it is converted
        return replace(_of_card(known, chosen, format, sha256), reference=reference)
    return Origin(chosen, reference=reference, format=format, sha256=sha256, sha256_given=sha256 is not None)


def _with_file_at_hand(origin: Origin, path: Path) -> Origin:
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
    return Origin(
        _free_name(name, card),
        path=path,
        format=format or _format_of(path.name),
        sha256=sha256,
        sha256_given=sha256 is not None,
        card=card,
    )


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
