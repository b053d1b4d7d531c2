"""What the losses over score matrices share: the order of the chunks, and what is asked for and given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from cloob_cli.core.exchange import Visit, visits
from cloob_cli.core.loss_forms.inputs import LossInputs
from cloob_cli.core.loss_forms.steps import Steps


@dataclass
class Gradient:
    """Of a scalar: for two matrices of this process's rows [n, D], and for the scalar inv_tau (0 if not wanted)."""

    left: Tensor
    right: Tensor
    inv_tau: Tensor


def score_chunks(
    inputs: LossInputs, tensors: Sequence[Tensor], sums: Sequence[Tensor], steps: Steps
) -> Iterator[tuple[Visit, slice, slice]]:
    """Every block of columns (see `visits`) with every chunk of this process's rows: the visit, and the rows' numbers
    here and in the joint matrix. On one process a chunk holds whole rows.
    """
    own = inputs.layout.own
    for visit in visits(inputs.layout, tensors, sums, most_rows=steps.tile[1]):
        # A block of others' rows is as wide as a tile; taller chunks would make the D columns beside it large.
        tallest = None if visit.own else steps.tile[0]
        for chunk in steps.chunks(own.stop - own.start, visit.rows.stop - visit.rows.start, tallest):
            yield visit, chunk, slice(own.start + chunk.start, own.start + chunk.stop)
