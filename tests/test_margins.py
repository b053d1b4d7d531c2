"""The comparisons with a tolerance that other tests are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import margins
import numpy as np
import pytest
import torch
from margins import close, within

pytestmark = pytest.mark.numeric


@pytest.fixture(autouse=True)
def _unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep thresholds that fail on purpose out of the suite's record."""
    monkeypatch.delenv(margins.RECORD, raising=False)


def test_the_worst_element_is_compared_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(margins.RECORD, str(tmp_path / "record"))
    close(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 4.0]), "because", atol=1.0, rtol=0.2)
    with pytest.raises(AssertionError, match=r"0\.5 is above 0\.25"):
        close([2.5], [2.0], "because", rtol=0.125)
    rows = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    assert [(row["measured"], row["limit"], row["reason"]) for row in rows] == [
        (0.5, 1.5, "because"),
        (0.5, 0.25, "because"),
    ]
    assert rows[0]["test"].endswith("test_margins.py::test_the_worst_element_is_compared_and_recorded")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (math.nan, 1.0),
        ([1.0, math.nan], [1.0, 1.0]),
        (math.inf, 1.0),
        (1.0, math.inf),
        (np.ones(3), np.ones(4)),
        (torch.ones(3), torch.ones(3, dtype=torch.float64)),
    ],
)
def test_what_is_no_number_of_the_same_kind_is_not_close(found: object, expected: object) -> None:
    with pytest.raises(AssertionError):
        close(found, expected, "any", atol=1e6)


def test_equal_infinities_and_exact_numbers_are_close() -> None:
    close([math.inf, 2.0], [math.inf, 2.0], "equal")
    close(torch.empty(0), torch.empty(0), "nothing")
    with pytest.raises(AssertionError):
        close(2.0 + 1e-15, 2.0, "not equal")


def test_a_test_without_the_marker_may_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margins, "marked_numeric", False)
    with pytest.raises(AssertionError, match="give this test the marker"):
        within(0.0, 1.0, "any")
