"""The order in which samples come: a permutation for each epoch, and the split that holds some out.

Pure functions of the seed and the epoch, so that a run can go on anywhere without reading what came before.
"""

from __future__ import annotations

import numpy as np

from cloob_cli.data.random_numbers import random_bits

_ORDER_DRAW = 0  # the draw that sorts an epoch
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
