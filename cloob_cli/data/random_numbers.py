"""Random numbers of samples: pure functions of (seed, epoch, sample, draw).

Nothing here has a state. A random number is a hash of what it is for (SplitMix64, Steele, Lea & Flood, "Fast
splittable pseudorandom number generators", 2014), so any sample of any epoch can be had at once, in any process, in
any order, and for a whole batch in a few array operations. It does not change with the version of a library.

Draw 0 of a sample sorts its epoch (`sample_order.py`); those from 1 on belong to its caption and its augmentation.
"""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


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
