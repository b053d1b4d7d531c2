"""Which model may bear the name of a card: the card's own, and nobody else's.

A card's scores, license and data are shown for whatever is installed under its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli.errors import RegistryError
from cloob_cli.files import sha256_of
from cloob_cli.registry import cards
from cloob_cli.registry.cards import Card

if TYPE_CHECKING:
    from cloob_cli.core.config import ModelConfig


def refuse_taken_name(name: str, card: Card | None = None, remedy: str = "give another name with --name") -> None:
    """Raise RegistryError where `name` is a card's and the model is not that card's.

    Args:
        card: the card that describes where the model comes from, if one does.
        remedy: the first half of the hint.
    """
    # File systems that do not tell upper from lower case would take both for one folder.
    taken = next((known for known in cards.card_names() if known == name.casefold()), None)
    if taken and (card is None or card.name != name):
        raise RegistryError(
            f"{name!r} is the name of a model of the zoo, and this is another one, or cannot be shown to be that one",
            f"{remedy}; `cloob zoo pull {taken}` installs the zoo's own",
        )


def card_of_files(name: str, hashes: Mapping[str, str]) -> Card | None:
    """The card of that name, where it lists exactly these files with these sha256 hashes; else None."""
    if name not in cards.card_names():
        return None
    card = cards.card(name)
    return card if card.files and card.files == dict(hashes) else None


def check_shape(config: ModelConfig, card: Card) -> None:
    """Raise RegistryError where a model cannot be the one that a card describes."""
    found, said = (config.vision.image_size, config.embed_dim), (card.image_size, card.embed_dim)
    if found != said:
        raise RegistryError(
            f"this is not {card.name}: {found[0]} pixels and {found[1]} dimensions, where its card says {said[0]} and "
            f"{said[1]}"
        )


def hashes_of_folder(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The sha256 of those of the named files that a folder holds."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}
