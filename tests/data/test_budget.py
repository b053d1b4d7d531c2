"""A budget that threads share."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cloob_cli.data import decoding_memory
from cloob_cli.data.decoding_memory import MemoryBudget, OverBudgetError, default_budget, parse_bytes
from cloob_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1GB", 10**9),
        ("1 gb", 10**9),
        ("1.5g", 15 * 10**8),
        ("512MB", 512 * 10**6),
        ("2GiB", 2 << 30),
        ("64 kib", 64 << 10),
        ("1000000", 10**6),
        ("7b", 7),
    ],
)
def test_amounts(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1GB", "1e9", "1QB", "GB", "1GB2", "0.1"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_bytes(text)


def test_threads_never_hold_more_than_the_whole() -> None:
    shared = MemoryBudget(100)
    held, most, lock = 0, 0, threading.Lock()

    def work(amount: int) -> None:
        nonlocal held, most
        for _ in range(20):
            with shared.reserve(amount):
                with lock:
                    held += amount
                    most = max(most, held)
                time.sleep(0.0005)
                with lock:
                    held -= amount

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (10, 30, 30, 60, 100, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert 60 < most <= 100


def test_what_is_large_is_not_overtaken_for_ever() -> None:
    shared, order = MemoryBudget(10), []

    def work(name: str, amount: int) -> None:
        with shared.reserve(amount):
            order.append(name)

    with shared.reserve(5):
        threads = []
        for name, amount in (("large", 10), ("small", 1)):
            threads.append(threading.Thread(target=work, args=(name, amount)))
            threads[-1].start()
            while len(shared._waiting) < len(threads):
                time.sleep(0.001)
        assert order == []  # the small one would fit, and comes after the large one
    for thread in threads:
        thread.join(60)
    assert order == ["large", "small"]


def test_more_than_the_whole_is_refused_and_errors_give_back() -> None:
    shared = MemoryBudget(10)
    with pytest.raises(OverBudgetError), shared.reserve(11):
        pass
    with pytest.raises(KeyError), shared.reserve(10):
        raise KeyError
    with shared.reserve(10):
        pass


def test_the_default_is_a_quarter_of_what_the_machine_or_the_container_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    total = psutil.virtual_memory().total
    assert 0 < default_budget() <= total / 4
    monkeypatch.setattr(decoding_memory, "_control_group_limits", lambda: [total * 2])
    assert default_budget() == int(total / 4)
    monkeypatch.setattr(decoding_memory, "_control_group_limits", lambda: [total * 2, 4_000_000])
    assert default_budget() == 1_000_000
