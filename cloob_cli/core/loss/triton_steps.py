"""The steps of `steps.py` by fused Triton kernels.

The matrix products between them stay with the vendor's library, which comes nearer to the limit of the matrix units
than tiles written by hand: at D = 512 the sums of a tile's second product alone would fill a multiprocessor's
registers. What the kernels save is the traffic in between, a read and a write of the whole tile for each small step.
Large scores stay with the plain steps.

Every matrix and vector that kernels are given is contiguous. Sums that several programs add to are summed in whatever
order these come, so that the last bits of a result may differ from run to run. Checked against the plain steps through
Triton's interpreter (TRITON_INTERPRET=1); their speed has not been measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cloob_cli.core.loss.steps import LOWEST as LOWEST_LOGIT
from cloob_cli.core.loss.steps import Exponents, RowSoftmax, Steps

LOWEST = tl.constexpr(LOWEST_LOGIT)
ELEMENTS = tl.constexpr(4096)  # of a row, that one program works on at a time
ROWS, COLUMNS = tl.constexpr(32), tl.constexpr(128)  # of a block, that one program works on at a time
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


class TritonSteps(Steps):
    """`Steps` whose arithmetic is in float32."""

    def exponentials(
        self, scores: Tensor, vectors: Exponents, change: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if not vectors.less_common:
            return super().exponentials(scores, vectors, change)
        weights = self._operand_like("weights", scores)
        gradient = None if change is None else self._operand_like("gradient", scores)
        exponentials_kernel[_blocks(scores)](
            *(scores, vectors.row_bias, vectors.column_bias, weights),
            # Not read or written without a gradient.
            *(scores if change is None else change, vectors.row_change, vectors.column_change),
            weights if gradient is None else gradient,
            *(vectors.row_sums, vectors.column_sums, *scores.shape, change is not None),
            **OPTIONS,
        )
        return self.operand(weights), None if gradient is None else self.operand(gradient)

    def softmax_of_rows(self, logits: Tensor, column_bias: Tensor, keep_logits: bool) -> RowSoftmax:
        rows, columns = logits.shape
        largest, total = logits.new_empty(2, rows, 1).unbind()
        softmax_kernel[(rows,)](logits, column_bias, largest, total, columns, **OPTIONS)
        return RowSoftmax(logits, largest, total)

    def softmax_gradient(
        self, softmax: RowSoftmax, factor: Tensor, columns: Tensor | None, diagonal: int, sums: tuple[Tensor, Tensor]
    ) -> Tensor:
        logits, weights = softmax.logits, self._operand_like("weights", softmax.logits)
        vectors = (softmax.largest, factor, sums[1] if columns is None else columns)  # not read if None
        sizes = (diagonal, *logits.shape)
        softmax_gradient_kernel[_blocks(logits)](
            logits, *vectors, weights, *sums, *sizes, columns is not None, **OPTIONS
        )
        return self.operand(weights)

    def _operand_like(self, name: str, tile: Tensor) -> Tensor:
        rows, columns = tile.shape
        return self.buffer(name, rows, columns, torch.bfloat16 if self.narrow else torch.float32)


def _blocks(tile: Tensor) -> tuple[int, int]:
    return (triton.cdiv(tile.shape[0], ROWS.value), triton.cdiv(tile.shape[1], COLUMNS.value))


# --- kernels: a program a block of ROWS x COLUMNS, a row, or COLUMNS columns ------------------------------------------


@triton.jit
def _exp_less_one(value):
    """exp(value) - 1 without cancellation: Taylor's series up to 0.5, where its next term is below 1e-7."""
    series = value * 0.0 + 1.0
    for term in tl.static_range(8, 1, -1):
        series = 1.0 + value * (1.0 / term) * series  # the quotient is a constant
    return tl.where(tl.abs(value) < 0.5, value * series, tl.exp(value) - 1.0)


@triton.jit
def _block(rows, columns):
    """The rows and columns of this program's block, and where in the tile they are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    return row, column, at, (row < rows)[:, None] & (column < columns)[None, :]


@triton.jit
def _beside(row_values, column_values, row, column, rows, columns):
    """The numbers of a block's rows and columns, to be added to it or multiplied with it."""
    by_row = tl.load(row_values + row, mask=row < rows, other=0.0)
    by_column = tl.load(column_values + column, mask=column < columns, other=0.0)
    return by_row[:, None], by_column[None, :]


@triton.jit
def _add_sums(value, row_sums, column_sums, row, column, inside, rows, columns):
    value = tl.where(inside, value, 0.0)
    tl.atomic_add(row_sums + row, tl.sum(value, axis=1), mask=row < rows)
    tl.atomic_add(column_sums + column, tl.sum(value, axis=0), mask=column < columns)


@triton.jit
def exponentials_kernel(
    scores, row_bias, column_bias, weights, change, row_change, column_change, gradient, row_sums, column_sums,
    rows, columns, GRADIENT: tl.constexpr,
):  # fmt: skip
    """exp(biases) (exp(scores) - 1), with GRADIENT also exp(biases and scores) (change and its biases); sums."""
    row, column, at, inside = _block(rows, columns)
    weight = _exp_less_one(tl.load(scores + at, mask=inside, other=0.0))
    by_row, by_column = _beside(row_bias, column_bias, row, column, rows, columns)
    factor = tl.exp(by_row) * tl.exp(by_column)
    summed = weight * factor
    tl.store(weights + at, summed, mask=inside)
    if GRADIENT:
        by_row, by_column = _beside(row_change, column_change, row, column, rows, columns)
        value = tl.load(change + at, mask=inside, other=0.0) + by_row + by_column
        summed = (value + value * weight) * factor
        tl.store(gradient + at, summed, mask=inside)
    _add_sums(summed, row_sums, column_sums, row, column, inside, rows, columns)


@triton.jit
def softmax_kernel(logits, column_bias, maxima, totals, columns):
    """Add the bias to a row, in place; its maximum and its sum of exp(logits - maximum)."""
    row = tl.program_id(0).to(tl.int64)
    largest = LOWEST
    total = 0.0
    for start in range(0, columns, ELEMENTS):
        column = start + tl.arange(0, ELEMENTS)
        inside = column < columns
        value = tl.load(logits + row * columns + column, mask=inside, other=-float("inf"))
        value += tl.load(column_bias + column, mask=inside, other=0.0)
        tl.store(logits + row * columns + column, value, mask=inside)
        above = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(value - above), axis=0)
        largest = above
    tl.store(maxima + row, largest)
    tl.store(totals + row, total)


@triton.jit
def softmax_gradient_kernel(
    logits, maxima, factors, column_logsumexp, weights, row_sums, column_sums, diagonal, rows, columns,
    BOTH: tl.constexpr,
):  # fmt: skip
    """The softmax of rows, with BOTH also that of columns, less 1 each at the positives, and its sums."""
    row, column, at, inside = _block(rows, columns)
    logit = tl.load(logits + at, mask=inside, other=0.0)
    largest, by_column = _beside(maxima, column_logsumexp, row, column, rows, columns)
    value = tl.exp(logit - largest) * tl.load(factors + row, mask=row < rows, other=0.0)[:, None]
    if BOTH:
        value += tl.exp(logit - by_column)
    own = column[None, :] == diagonal + row[:, None]
    value = tl.where(own, value - (2.0 if BOTH else 1.0), value)
    tl.store(weights + at, value, mask=inside)
    _add_sums(value, row_sums, column_sums, row, column, inside, rows, columns)
