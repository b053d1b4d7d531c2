"""Fixtures that all tests of runs have in common."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from cloob_cli.training import finish


@pytest.fixture(autouse=True, scope="module")
def no_loss_curve() -> Iterator[None]:
    """Runs draw no loss curve, which would be a third of the time of a tiny one; the run `straight` in test_loop.py
    draws its own.
    """
    with mock.patch.object(finish, "draw_loss_curve"):
        yield
