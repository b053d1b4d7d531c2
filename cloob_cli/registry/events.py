"""Events of a running pull; the caller decides how to show them."""

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
    """A line for the person who waits."""

    text: str


Event = Received | Started | Notice
Report = Callable[[Event], None]


def unreported(event: Event) -> None:
    """A report that nobody reads."""
