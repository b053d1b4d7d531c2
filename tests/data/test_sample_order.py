"""Order and random numbers: fixed by (seed, epoch, sample), and random enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from margins import within

from cloob_cli.data.random_numbers import _mix, random_bits, uniforms
from cloob_cli.data.sample_order import block_windows, epoch_order, hold_out

SEEDS = st.integers(0, 2**64 - 1)

ORDER_0_0 = [8, 5, 0, 3, 7, 1, 2, 9, 6, 4]
ORDER_7_3 = [3, 8, 1, 2, 9, 6, 0, 7, 4, 5]
UNIFORMS_1_2_3 = ["0.979292466", "0.409068921", "0.140077229"]


def test_the_hash_is_splitmix64() -> None:
    """The first outputs for seed 1234567, as published with the generator's reference implementation."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * gamma
        outputs = _mix(states)
    assert outputs.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_orders_never_change() -> None:
    """A resumed run must find the order that it left, also after an upgrade."""
    assert epoch_order(10, seed=0, epoch=0).tolist() == ORDER_0_0
    assert epoch_order(10, seed=7, epoch=3).tolist() == ORDER_7_3
    assert [f"{number:.9f}" for number in uniforms(1, 2, np.array([3]), 3)[0]] == UNIFORMS_1_2_3


@given(st.integers(0, 300), SEEDS, st.integers(0, 1000))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(n, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@given(SEEDS, st.integers(0, 1000), st.lists(st.integers(0, 10**9), max_size=20), st.integers(1, 9))
def test_a_sample_s_numbers_do_not_depend_on_the_others(seed: int, epoch: int, samples: list[int], count: int) -> None:
    together = uniforms(seed, epoch, np.array(samples, dtype=np.int64), count)
    assert together.shape == (len(samples), count)
    for row, sample in zip(together, samples, strict=True):
        alone = uniforms(seed, epoch, np.array([sample]), count + 2)[0, :count]
        np.testing.assert_array_equal(row, alone)
        assert (row >= 0).all()
        assert (row < 1).all()


@pytest.mark.numeric
def test_numbers_are_even_and_independent() -> None:
    """Means and correlations within five standard errors of those of independent uniform numbers."""
    n = 40_000
    draws = uniforms(0, 0, np.arange(n), 8)
    error = np.sqrt(1 / 12 / n)
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 5 * error
    others = [np.roll(draws, 1, axis=0), uniforms(0, 1, np.arange(n), 8), uniforms(1, 0, np.arange(n), 8)]
    for other in others:
        within(
            np.abs(np.corrcoef(draws.T, other.T)[:8, 8:]).max(),
            6 / np.sqrt(n),
            "six deviations: of two hundred the largest is three",
        )
    correlation = np.corrcoef(draws.T) - np.eye(8)
    within(np.abs(correlation).max(), 6 / np.sqrt(n), "six deviations: of two hundred the largest is three")
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    expected = draws.size / 100
    excess = ((counts - expected) ** 2 / expected).sum() - 99
    within(abs(excess), 5 * np.sqrt(2 * 99), "five deviations of chi squared")


@pytest.mark.numeric
def test_bits_use_all_64() -> None:
    bits = random_bits(0, 0, np.arange(1000), 2)
    fractions = [((bits >> np.uint64(k)) & np.uint64(1)).astype(float).mean() for k in range(64)]
    within(np.abs(np.array(fractions) - 0.5).max(), 0.08, "seven deviations of 0.011: of 64 the largest is three")


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 8), SEEDS)
def test_windows_hold_whole_blocks(sizes: list[int], blocks_in_window: int, seed: int) -> None:
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    windows = block_windows(blocks, blocks_in_window, seed, 0)
    for block in range(len(sizes)):
        assert len(set(windows[blocks == block])) == 1
    for window in set(windows.tolist()):
        assert len(set(blocks[windows == window])) <= blocks_in_window
    order = epoch_order(len(blocks), seed, 0, windows)
    assert sorted(order.tolist()) == list(range(len(blocks)))
    assert (np.diff(windows[order]) >= 0).all()  # a window is done with before the next one begins


def test_blocks_are_dealt_anew_in_every_epoch() -> None:
    blocks = np.repeat(np.arange(40), 5)
    dealt = {tuple(block_windows(blocks, 4, 0, epoch)) for epoch in range(5)}
    assert len(dealt) == 5


@given(st.integers(0, 500), st.floats(0, 0.5), SEEDS)
def test_hold_out_splits(n: int, fraction: float, seed: int) -> None:
    rest, held = hold_out(n, fraction, seed)
    assert len(held) == round(n * fraction)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(n))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(held) > 0).all()


def test_what_is_held_out_does_not_follow_the_order_of_an_epoch() -> None:
    """Otherwise it would be what comes first, or last, in an epoch, or be held out because of that."""
    _, held = hold_out(100, 0.25, seed=0)
    for epoch in range(100):
        order = epoch_order(100, 0, epoch).tolist()
        assert set(held.tolist()) not in (set(order[:25]), set(order[-25:]))
