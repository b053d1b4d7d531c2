"""What a pull reports while it runs; whoever asked for it decides how to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Received:
    """`bytes` more of a download are here."""

    bytes: int


@dataclass(frozen=True)
class Started:
    """A download begins, or begins again, with `done` bytes here already, of `total` where the server says so."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Notice:
    """Something that a person who waits wants to know."""

    text: str


Event = Received | Started | Notice
Report = Callable[[Event], None]


def unreported(event: Event) -> None:
    """A report that nobody reads."""
