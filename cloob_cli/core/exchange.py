"""Blocks of rows that go round all processes, so that none of them ever holds a whole joint matrix.

Each process holds its own rows of joint [N, ...] matrices. A block of them travels from process to process, is used
where it is, and collects on its way what the processes add to its sums; after the last one the sums come home. No
process holds more than its own rows and a few blocks. The numbers that arrive are as many as with an all-gather of the
rows and a reduce-scatter of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.distributed as distributed
from torch import Tensor

from cloob_cli.core.gather import RowLayout


@dataclass(frozen=True)
class Visit:
    """Rows of the joint matrices that are here now.

    `rows` are their numbers in the joint matrix, `own` says whether they are this process's; `tensors` [m, ...] hold
    them, and what is added to `sums` [m, ...] in place reaches the process whose rows they are.
    """

    rows: slice
    own: bool
    tensors: list[Tensor]
    sums: list[Tensor]


def visits(layout: RowLayout, tensors: Sequence[Tensor], sums: Sequence[Tensor], most_rows: int) -> Iterator[Visit]:
    """All rows of the joint matrices, block by block, this process's own first and in one piece.

    Every process of the layout must go through all of them. `tensors` are its rows [n, ...] of matrices of the same
    kind everywhere; `sums` [n, ...] get added what all processes added to the visits of these rows, complete when the
    last visit is over. Blocks of others have at most `most_rows` rows; the next arrives while one is worked on. Blocks
    without rows are left out.
    """
    if layout.counts[layout.rank]:
        yield Visit(layout.own, True, list(tensors), list(sums))
    if layout.processes == 1:
        return
    ring = _Ring(layout, pieces=-(-max(layout.counts) // most_rows))
    # At distance d the rows of the d-th process before this one are here.
    stops = [(piece, distance) for piece in range(ring.pieces) for distance in range(1, layout.processes)]
    arriving = ring.pass_on(ring.own(tensors, 0), 1, 0)
    homebound: _Transfer | None = None
    for number, (piece, distance) in enumerate(stops):
        here = arriving.wait()
        if number + 1 < len(stops):
            next_piece, next_distance = stops[number + 1]
            outgoing = here if next_piece == piece else ring.own(tensors, next_piece)
            arriving = ring.pass_on(outgoing, next_distance, next_piece)
        rows = ring.joint_rows(distance, piece)
        added = [total.new_zeros(rows.stop - rows.start, *total.shape[1:]) for total in sums]
        if rows.stop > rows.start:
            yield Visit(rows, False, here, added)
        if not sums:
            continue
        # What the processes before this one added to these rows comes after the work on them, not before.
        if homebound is not None and distance > 1:
            _add(added, homebound.wait())
        homebound = ring.pass_on(added, distance + 1, piece)
        if distance == layout.processes - 1:
            _add(ring.own(sums, piece), homebound.wait())


@dataclass(frozen=True)
class _Transfer:
    works: list[distributed.Work]
    sent: list[Tensor]  # kept alive and unchanged until they are on their way
    received: list[Tensor]

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.received


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
        layout = self.layout
        assert layout.group is not None
        next_one, one_before = (
            distributed.get_global_rank(layout.group, (layout.rank + step) % layout.processes) for step in (1, -1)
        )
        rows = self.joint_rows(distance, piece)
        received = [tensor.new_empty(rows.stop - rows.start, *tensor.shape[1:]) for tensor in outgoing]
        sent = [tensor.contiguous() for tensor in outgoing]
        operations = [
            distributed.P2POp(operation, tensor, peer, layout.group)
            for operation, tensors, peer in (
                (distributed.isend, sent, next_one),
                (distributed.irecv, received, one_before),
            )
            for tensor in tensors
            if tensor.numel()
        ]
        works = distributed.batch_isend_irecv(operations) if operations else []
        return _Transfer(works, sent, received)


def _add(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    for total, part in zip(totals, parts, strict=True):
        total.add_(part)
