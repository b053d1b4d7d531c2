"""Rows that lie on several processes: the one gather, its transpose, and the differentiable form of the pair.

Each process holds its own rows of a joint [N, D] matrix, in rank order; row counts may differ and may be zero. The
transpose of a gather is a sum: a gathered row is used by every process, so its gradient is the sum of what all of them
computed for it. Works with every backend that has all-gather, all-to-all and all-reduce (NCCL, gloo).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.autograd.function import once_differentiable

# torch 2.13 renames it and warns of the old name.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True)
class RowLayout:
    """How many rows each process of `group` holds. `group` is None for one process alone."""

    counts: tuple[int, ...]
    rank: int = 0
    group: distributed.ProcessGroup | None = None

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def processes(self) -> int:
        return len(self.counts)

    @property
    def own(self) -> slice:
        """The rows of this process in the joint matrix."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])


def row_layout(
    rows: int, device: torch.device, group: distributed.ProcessGroup | None = None, facts: Sequence[int] = ()
) -> tuple[RowLayout, list[list[int]]]:
    """How many rows each process of `group` holds, and the facts of each: 8 bytes a number from every process."""
    if group is None or distributed.get_world_size(group) == 1:
        return RowLayout((rows,)), [list(facts)]
    own = torch.tensor([rows, *facts], dtype=torch.int64, device=device)
    everybody = own.new_empty(distributed.get_world_size(group) * len(own))
    _all_gather(everybody, own, group=group)
    told = everybody.view(-1, len(own)).tolist()
    return RowLayout(tuple(each[0] for each in told), distributed.get_rank(group), group), [each[1:] for each in told]


def gather_rows(local: Tensor, layout: RowLayout) -> Tensor:
    """[n, ...] of this process -> [N, ...] of all, the same on each. Not differentiable."""
    if layout.processes == 1:
        return local
    largest = max(layout.counts)
    # Collectives want equal pieces: short ones are padded on the way and cut on arrival.
    piece = local.contiguous()
    if len(piece) < largest:
        piece = torch.cat([piece, piece.new_zeros(largest - len(piece), *piece.shape[1:])])
    pieces = piece.new_empty(layout.processes * largest, *piece.shape[1:])
    _all_gather(pieces, piece, group=layout.group)
    if min(layout.counts) == largest:
        return pieces
    return torch.cat([pieces[k * largest : k * largest + count] for k, count in enumerate(layout.counts)])


def parts_for_own_rows(joint: Tensor, layout: RowLayout) -> Tensor:
    """What every process has in `joint` [N, ...] for the rows of this one: [processes, n, ...], in rank order."""
    own = layout.counts[layout.rank]
    if layout.processes == 1:
        return joint[None]
    received = joint.new_empty(layout.processes * own, *joint.shape[1:])
    distributed.all_to_all_single(
        received, joint.contiguous(), [own] * layout.processes, list(layout.counts), group=layout.group
    )
    return received.view(layout.processes, own, *joint.shape[1:])


def scatter_sum(joint: Tensor, layout: RowLayout) -> Tensor:
    """The transpose of `gather_rows`: [N, ...] on every process -> the sum over processes of this one's rows [n, ...].

    Rank order fixes the order of summation, so that the result is the same on every run.
    """
    return joint if layout.processes == 1 else parts_for_own_rows(joint, layout).sum(dim=0)


def sum_over_processes(value: Tensor, layout: RowLayout) -> Tensor:
    """The sum of `value` over all processes; `value` itself is overwritten."""
    if layout.processes > 1:
        distributed.all_reduce(value, group=layout.group)
    return value


def largest_over_processes(value: Tensor, layout: RowLayout) -> Tensor:
    """The largest of `value` over all processes, elementwise; `value` itself is overwritten."""
    if layout.processes > 1:
        distributed.all_reduce(value, distributed.ReduceOp.MAX, group=layout.group)
    return value


def mean_of_rows(rows: Tensor, layout: RowLayout) -> Tensor:
    """The mean [...] of the rows [n, ...] of all processes."""
    if layout.processes == 1:
        return rows.mean(dim=0)
    return sum_over_processes(rows.sum(dim=0), layout) / layout.total


class _DifferentiableGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, layout: RowLayout) -> Tensor:
        ctx.layout = layout
        return gather_rows(local, layout) if layout.processes > 1 else local.view_as(local)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return scatter_sum(gradient, ctx.layout), None


def gather_differentiably(local: Tensor, layout: RowLayout) -> Tensor:
    """`gather_rows` whose gradient is `scatter_sum`.

    Where all processes compute the same joint loss from the gathered rows, each gets the number of processes times the
    loss's gradient with respect to its own rows: what DDP's averaging of parameter gradients expects.
    """
    return _DifferentiableGather.apply(local, layout)
