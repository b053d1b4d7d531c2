"""The order of samples, and the random numbers of their augmentation: pure functions of (seed, epoch, sample).

Nothing here has a state. A random number is a hash of what it is for (SplitMix64, Steele, Lea & Flood, "Fast
splittable pseudorandom number generators", 2014), so any sample of any epoch can be had at once, in any process, in
any order, and for a whole batch in a few array operations. It does not change with the version of a library.
"""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ORDER_DRAW = 0  # the draw that sorts an epoch; those from 1 on belong to the samples' augmentation
_HOLD_OUT_EPOCH = 2**63  # no epoch of a training run


def epoch_order(n: int, seed: int, epoch: int, windows: np.ndarray | None = None) -> np.ndarray:
    """The order in which samples 0..n-1 come in an epoch -> int64 [n], a permutation.

    Args:
        windows: int64 [n], the window that each sample belongs to in this epoch (`block_windows`). Windows then
            come one after another, lowest first, and only their samples are mixed. Left out: one window.
    """
    keys = random_bits(seed, epoch, np.arange(n), 1, first_draw=_ORDER_DRAW)[:, 0]
    if windows is None:
        return np.argsort(keys, kind="stable")
    return np.lexsort((keys, windows))


def block_windows(blocks: np.ndarray, blocks_in_window: int, seed: int, epoch: int) -> np.ndarray:
    """Deal blocks, which are read as a whole, at random to windows that fit in memory.

    Args:
        blocks: int64 [n], the block of each sample.
        blocks_in_window: how many blocks may be in memory at once.

    Returns:
        int64 [n], the window of each sample, for `epoch_order`.
    """
    names, block_of = np.unique(blocks, return_inverse=True)
    # Blocks and samples are numbered alike; blocks draw from the far end of the numbers so as not to repeat a draw.
    keys = random_bits(seed, epoch, 2**62 + np.arange(len(names)), 1, first_draw=_ORDER_DRAW)[:, 0]
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(names))
    return (rank // blocks_in_window)[block_of]


def hold_out(n: int, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split samples 0..n-1 at random -> (the rest, round(n * fraction) held-out ones), both int64 and ascending."""
    order = epoch_order(n, seed, _HOLD_OUT_EPOCH)
    held = round(n * fraction)
    return np.sort(order[held:]), np.sort(order[:held])


def uniforms(seed: int, epoch: int, samples: np.ndarray, count: int, first_draw: int = 1) -> np.ndarray:
    """`count` numbers in [0, 1) for each sample, its draws from `first_draw` on -> float64 [B, count]."""
    return (random_bits(seed, epoch, samples, count, first_draw) >> np.uint64(11)) * 2.0**-53


def further_uniforms(uniform: np.ndarray, count: int) -> np.ndarray:
    """`count` further numbers in [0, 1) for each of these, float64 [B] -> float64 [B, count]: hashes of its 53 bits.

    For a choice that needs more numbers than the one it has, without moving the draws of other choices.
    """
    with np.errstate(over="ignore"):
        state = _mix((uniform * 2.0**53).astype(np.uint64) + _GAMMA)
        steps = (np.arange(count).astype(np.uint64) + np.uint64(1)) * _GAMMA
        return (_mix(state[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def random_bits(seed: int, epoch: int, samples: np.ndarray, count: int, first_draw: int = 1) -> np.ndarray:
    """Draws `first_draw`, `first_draw` + 1, ... of each sample -> uint64 [B, count]."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        run = _mix(_mix(_wrapped(seed) + _GAMMA) + _wrapped(epoch) * _GAMMA + _GAMMA)
        state = _mix(run + (np.asarray(samples).astype(np.uint64) + np.uint64(1)) * _GAMMA)
        steps = (np.arange(first_draw, first_draw + count).astype(np.uint64) + np.uint64(1)) * _GAMMA
        return _mix(state[:, None] + steps)


def _wrapped(number: int) -> np.ndarray:
    return np.asarray([number % 2**64], dtype=np.uint64)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, uint64 -> uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
