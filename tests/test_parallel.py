"""Ordered work on threads, the number of cores, and threads that wait."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from command_line import cloob

from cloob_cli import __main__, main
from cloob_cli.parallel import core_count, map_in_order


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    late = threading.Event()

    def double(number: int) -> int:
        if threads > 1 and number == 0:
            assert late.wait(30)  # the first result is the last one to be ready
        if number == 3:
            late.set()
        return 2 * number

    assert list(map_in_order(double, range(50), threads, ahead=8)) == [2 * number for number in range(50)]


def test_items_are_taken_only_as_far_ahead_as_allowed() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_in_order(lambda number: number, endless(), 2, ahead=5)
    for count in range(1, 10):
        assert next(results) == count
        assert taken == count + 5  # the next one is handed to the threads before a result is yielded
    results.close()
    assert taken == 9 + 5


def test_an_error_is_raised_in_its_place_and_ends_the_threads() -> None:
    results = map_in_order(lambda number: 1 // number, [2, 1, 0, 1], 2, ahead=4)
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cloob")]


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 9}, raising=False)
    assert core_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count() == 1


WAITING = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"]


@contextmanager
def told_to_wait(**chosen: str) -> Iterator[None]:
    """An environment that says of waiting threads only what is chosen."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    with mock.patch.dict(os.environ, kept | chosen, clear=True):
        yield


def told_when_begun(**chosen: str) -> dict[str, str]:
    """The settings for waiting threads that the command finds when it begins, before torch is imported."""
    told: dict[str, str] = {}

    def note() -> None:
        told.update({name: os.environ[name] for name in WAITING if name in os.environ})

    with (
        told_to_wait(**chosen),
        mock.patch.object(main, "run", note),
        mock.patch("cloob_cli.signals.leave_at_once"),
        mock.patch("cloob_cli.garbage.no_more"),
    ):
        __main__.run()
    return told


def test_waiting_threads_are_told_to_sleep() -> None:
    assert told_when_begun() == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", WAITING)
def test_how_threads_wait_stays_as_the_environment_says(name: str) -> None:
    assert told_when_begun(**{name: "1"}) == {name: "1"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP libraries of other systems print in other forms")
@pytest.mark.parametrize(("chosen", "rounds"), [({}, "0"), ({"GOMP_SPINCOUNT": "700"}, "700")])
def test_the_openmp_library_of_torch_heeds_it(chosen: dict[str, str], rounds: str) -> None:
    with told_to_wait(**chosen):
        done = cloob("doctor", OMP_DISPLAY_ENV="verbose")
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)) == {rounds}
