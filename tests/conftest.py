"""Options of the test suite, and settings that make it the same on every machine."""

from __future__ import annotations

import os

import margins
import pytest

# One thread a process: two test workers share the cores, and sums are added in the same order everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the long forms of the checks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runslow"):
        return
    skip = pytest.mark.skip(reason="a long check; run with --runslow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    margins.marked_numeric = item.get_closest_marker("numeric") is not None
