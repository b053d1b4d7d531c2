"""Rows that lie on several processes: gathered on each, or going round from process to process.

Each process holds its own rows of a joint [N, ...] matrix, in rank order; row counts may differ and may be zero. The
transpose of a gather is a sum: a gathered row is used by every process, so its gradient is the sum of what all of them
computed for it. Works with every backend that has all-gather, all-to-all, all-reduce, send and receive (NCCL, gloo).

Where no process may hold a whole joint matrix, blocks of rows travel in a ring (`ring_blocks`). Each is used where it
is, and collects on its way what the processes add to its sums; after the last one the sums come home. The numbers that
arrive are as many as with an all-gather of the rows and a reduce-scatter of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

# torch 2.13 renames it and warns of the old name.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True)
class RowLayout:
    """Numbers of rows on each process of `group`, which is None for one process alone."""

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
    """The number of rows on each process of `group`, and the facts of each: 8 bytes a number from every process."""
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
    """The rows of this process in the `joint` [N, ...] of each: [processes, n, ...], in rank order."""
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


def gather_with_gradient(own: Tensor, layout: RowLayout) -> Tensor:
    """`gather_rows` of which this process's rows have a gradient, times the number of processes.

    Where all processes compute the same joint loss from the gathered rows, that is what DDP's averaging of parameter
    gradients expects.
    """
    joint, here = gather_rows(own.detach(), layout), layout.own
    scaled = own + (layout.processes - 1) * (own - own.detach())
    return torch.cat([joint[: here.start], scaled, joint[here.stop :]])


# --- rows in a ring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RingBlock:
    """Rows of the joint matrices that are here now.

    `rows` are their numbers in the joint matrix, `own` says if they are this process's; `tensors` [m, ...] hold them,
    and what is added to `sums` [m, ...] in place reaches the process whose rows they are.
    """

    rows: slice
    own: bool
    tensors: list[Tensor]
    sums: list[Tensor]


def ring_blocks(
    layout: RowLayout, tensors: Sequence[Tensor], sums: Sequence[Tensor], most_rows: int
) -> Iterator[RingBlock]:
    """All rows of the joint matrices, block by block, this process's own first and in one piece.

    Every process of the layout must go through all of them. `tensors` are its rows [n, ...] of matrices of the same
    kind everywhere; `sums` [n, ...] get added what all processes added to the blocks of these rows, complete when the
    last block is over. Blocks of others have at most `most_rows` rows; the next arrives while one is worked on. Blocks
    without rows are left out.
    """
    if layout.counts[layout.rank]:
        yield RingBlock(layout.own, True, list(tensors), list(sums))
    if layout.processes == 1:
        return
    ring = _Ring(layout, pieces=-(-max(layout.counts) // most_rows))
    # At distance d the rows of the d-th process before this one are here.
    stops = [(piece, distance) for piece in range(ring.pieces) for distance in range(1, layout.processes)]
    arriving = ring.pass_on(ring.own(tensors, 0), 1, 0)
    returning: _Transfer | None = None
    for number, (piece, distance) in enumerate(stops):
        here = arriving.wait()
        if number + 1 < len(stops):
            next_piece, next_distance = stops[number + 1]
            outgoing = here if next_piece == piece else ring.own(tensors, next_piece)
            arriving = ring.pass_on(outgoing, next_distance, next_piece)
        rows = ring.joint_rows(distance, piece)
        added = [total.new_zeros(rows.stop - rows.start, *total.shape[1:]) for total in sums]
        if rows.stop > rows.start:
            yield RingBlock(rows, False, here, added)
        if not sums:
            continue
        # What the processes before this one added to these rows comes after the work on them, not before.
        if returning is not None and distance > 1:
            returning.add_to(added)
        returning = ring.pass_on(added, distance + 1, piece)
        if distance == layout.processes - 1:
            returning.add_to(ring.own(sums, piece))


@dataclass(frozen=True)
class _Transfer:
    works: list[distributed.Work]
    sent: list[Tensor]  # kept alive and unchanged until they are on their way
    received: list[Tensor]

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.received

    def add_to(self, totals: Sequence[Tensor]) -> None:
        for total, part in zip(totals, self.wait(), strict=True):
            total.add_(part)


@dataclass(frozen=True)
class _Ring:
    """The processes in a circle: each sends to the next. Every process's rows are cut into `pieces` blocks."""

    layout: RowLayout
    pieces: int

    def rows_of(self, process: int, piece: int) -> slice:
        count = self.layout.counts[process]
        return slice(count * piece // self.pieces, count * (piece + 1) // self.pieces)

    def own(self, tensors: Sequence[Tensor], piece: int) -> list[Tensor]:
        return [tensor[self.rows_of(self.layout.rank, piece)] for tensor in tensors]

    def joint_rows(self, distance: int, piece: int) -> slice:
        process = (self.layout.rank - distance) % self.layout.processes
        start, rows = sum(self.layout.counts[:process]), self.rows_of(process, piece)
        return slice(start + rows.start, start + rows.stop)

    def pass_on(self, outgoing: list[Tensor], distance: int, piece: int) -> _Transfer:
        """Send to the next process; receive from the one before it what has come `distance` steps."""
        layout, group = self.layout, self.layout.group
        assert group is not None
        to, source = (distributed.get_global_rank(group, (layout.rank + step) % layout.processes) for step in (1, -1))
        rows = self.joint_rows(distance, piece)
        received = [tensor.new_empty(rows.stop - rows.start, *tensor.shape[1:]) for tensor in outgoing]
        sent = [tensor.contiguous() for tensor in outgoing]
        operations = [distributed.P2POp(distributed.isend, each, to, group) for each in sent if each.numel()]
        operations += [distributed.P2POp(distributed.irecv, each, source, group) for each in received if each.numel()]
        works = distributed.batch_isend_irecv(operations) if operations else []
        return _Transfer(works, sent, received)
