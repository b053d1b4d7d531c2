"""What several tests of the losses share."""

from __future__ import annotations

import pytest

from cloob_cli.core.loss_forms import choice
from cloob_cli.core.loss_forms.choice import DeviceSettings


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and chunks that every batch of the tests is cut into, none of them evenly."""
    monkeypatch.setitem(choice.SETTINGS, "cpu", DeviceSettings(2, tile=(13, 29), chunk_elements=1000))
