"""Fixtures that several tests of the losses share."""

from __future__ import annotations

import pytest

from cloob_cli.core.loss import steps


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and chunks that every batch of the tests is cut into, none of them evenly."""
    monkeypatch.setitem(steps.TILE_SIZES, "cpu", steps.TileSizes(tile=(13, 29), chunk_elements=1000))
