"""Interrupt a command that keeps finished batches, at a moment that is the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cloob_cli.inference.index import journal


@contextmanager
def ctrl_c_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Ctrl-C come in this process as soon as so many batches are kept."""
    append, left = journal.Journal.append, batches

    def counted(*arguments: object) -> None:
        nonlocal left
        append(*arguments)  # type: ignore[arg-type]
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "append", counted)
        yield
