"""Options of the test suite, and settings that make it the same on every machine."""

from __future__ import annotations

import gc
import os
import random
import signal
import zlib

import numpy as np
import pytest
from hypothesis import Phase, settings

# One thread a process: two test workers share the cores, and sums are added in the same order everywhere. torch reads
# this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The commands that tests start are compiled once, not by each of some hundred processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import margins
import torch

from cloob_cli import garbage

# How long an example takes says something about the machine and nothing about the program.
settings.register_profile("cloob", deadline=None)
# For scripts/mutants.py, which asks only whether there is a failure: the smallest one may take minutes to be found.
settings.register_profile("first-failure", deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("cloob")

# A job in the background ignores Ctrl-C, one under nohup SIGHUP, and processes that are started inherit that. They do
# not inherit handlers: with one that does nothing this process stays deaf, and those that are tested hear.
for _number in (getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the long forms of the checks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runslow"):
        return
    skip = pytest.mark.skip(reason="a long check; run with --runslow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


# The garbage collector would go through all that is imported again and again, and find nothing.
gc.disable()


def _no_wait_for_the_disk(handle: int) -> None:
    """A stand-in for os.fsync: what tests write need not outlive a power cut, and is thousands of files."""


os.fsync = _no_wait_for_the_disk


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from what lives to the end, and let it look after the rest."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    garbage.no_more()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # A test draws the same random numbers every time, whichever ran before it.
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    margins.marked_numeric = item.get_closest_marker("numeric") is not None
