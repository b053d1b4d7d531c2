"""The steps of `loss_steps.py` in fused Triton kernels: each reads a tile once or twice and writes its operands.

The matrix products between them stay with the vendor's library, which comes nearer to the limit of the matrix units
than tiles written by hand: at D = 512 the sums of a tile's second product alone would fill a multiprocessor's
registers. What the kernels save is the traffic in between, a read and a write of the whole tile for each small step.
The steps of whole rows, which only large scale_hopfield needs, stay plain.

Checked against the plain steps through Triton's interpreter (TRITON_INTERPRET=1); their speed has not been measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cloob_cli.core.loss_steps import LOWEST as LOWEST_LOGIT
from cloob_cli.core.loss_steps import Positives, Steps

ELEMENTS = 4096  # of a row, that one program works on at a time
ROWS, COLUMNS = 32, 128  # of a block, that one program works on at a time
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
LOWEST = tl.constexpr(LOWEST_LOGIT)


@triton.jit
def _rounded(value, ROUND: tl.constexpr):
    """Where operands are float32 that stand for bfloat16, round them here; else the store converts."""
    return value.to(tl.bfloat16).to(tl.float32) if ROUND else value


@triton.jit
def _exp_less_one(value):
    """exp(value) - 1 without cancellation: Taylor's series up to 0.5, where its next term is below 1e-7."""
    series = 1.0 + value / 8.0
    series = 1.0 + value / 7.0 * series
    series = 1.0 + value / 6.0 * series
    series = 1.0 + value / 5.0 * series
    series = 1.0 + value / 4.0 * series
    series = 1.0 + value / 3.0 * series
    series = 1.0 + value / 2.0 * series
    return tl.where(tl.abs(value) < 0.5, value * series, tl.exp(value) - 1.0)


@triton.jit
def _block(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows and columns of this program's block, and where in the tile they are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    return row, column, at, (row < rows)[:, None] & (column < columns)[None, :]


@triton.jit
def _load_biased(values, row_bias, column_bias, row, column, at, inside, rows, columns, BY_COLUMN: tl.constexpr):
    value = tl.load(values + at, mask=inside, other=0.0)
    value += tl.load(row_bias + row, mask=row < rows, other=0.0)[:, None]
    if BY_COLUMN:
        value += tl.load(column_bias + column, mask=column < columns, other=0.0)[None, :]
    return value


@triton.jit
def _add_sums(value, row_sums, column_sums, row, column, inside, rows, columns, BY_COLUMN: tl.constexpr):
    value = tl.where(inside, value, 0.0)
    tl.atomic_add(row_sums + row, tl.sum(value, axis=1), mask=row < rows)
    if BY_COLUMN:
        tl.atomic_add(column_sums + column, tl.sum(value, axis=0), mask=column < columns)


@triton.jit
def _exponentials_kernel(
    scores,
    row_bias,
    column_bias,
    weights,
    row_sums,
    column_sums,
    rows,
    columns,
    SUM_COLUMNS: tl.constexpr,
    ROUND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, column, at, inside = _block(rows, columns, ROWS, COLUMNS)
    score = _load_biased(scores, row_bias, column_bias, row, column, at, inside, rows, columns, True)
    weight = _exp_less_one(score)
    tl.store(weights + at, _rounded(weight, ROUND), mask=inside)
    _add_sums(weight, row_sums, column_sums, row, column, inside, rows, columns, SUM_COLUMNS)


@triton.jit
def _exponentials_and_gradient_kernel(
    scores,
    row_bias,
    column_bias,
    pulled,
    pulled_row_bias,
    pulled_column_bias,
    weights,
    gradient,
    row_sums,
    column_sums,
    rows,
    columns,
    BOTH: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
    ROUND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, column, at, inside = _block(rows, columns, ROWS, COLUMNS)
    score = _load_biased(scores, row_bias, column_bias, row, column, at, inside, rows, columns, True)
    pull = _load_biased(pulled, pulled_row_bias, pulled_column_bias, row, column, at, inside, rows, columns, BOTH)
    weight = _exp_less_one(score)
    change = pull + pull * weight
    tl.store(weights + at, _rounded(weight, ROUND), mask=inside)
    tl.store(gradient + at, _rounded(change, ROUND), mask=inside)
    _add_sums(change, row_sums, column_sums, row, column, inside, rows, columns, SUM_COLUMNS)


@triton.jit
def _both_kernel(
    logits,
    row_logsumexp,
    column_logsumexp,
    weights,
    row_sums,
    column_sums,
    diagonal,
    rows,
    columns,
    ROUND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Both softmaxes, given their logsumexps, less 2 on the diagonal."""
    row, column, at, inside = _block(rows, columns, ROWS, COLUMNS)
    value = tl.load(logits + at, mask=inside, other=0.0)
    by_row = tl.load(row_logsumexp + row, mask=row < rows, other=0.0)
    by_column = tl.load(column_logsumexp + column, mask=column < columns, other=0.0)
    both = tl.exp(value - by_row[:, None]) + tl.exp(value - by_column[None, :])
    both = tl.where(column[None, :] == diagonal + row[:, None], both - 2.0, both)
    tl.store(weights + at, _rounded(both, ROUND), mask=inside)
    _add_sums(both, row_sums, column_sums, row, column, inside, rows, columns, True)


@triton.jit
def _piece_of_row(
    logits,
    column_bias,
    row_ids,
    column_ids,
    diagonal,
    row,
    start,
    columns,
    NEGATIVES: tl.constexpr,
    IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Part of a row, -inf beyond its end. With NEGATIVES: with the bias, and -inf where a column is no negative."""
    column = start + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(logits + row * columns + column, mask=inside, other=-float("inf"))
    if NEGATIVES:
        value += tl.load(column_bias + column, mask=inside, other=0.0)
        value = tl.where(column == diagonal + row, -float("inf"), value)
        if IDS:
            own = tl.load(row_ids + row)
            value = tl.where(tl.load(column_ids + column, mask=inside, other=0) == own, -float("inf"), value)
    return value, column, inside


@triton.jit
def _rows_kernel(
    logits,
    column_bias,
    row_ids,
    column_ids,
    diagonal,
    logsumexp,
    inverse,
    weights,
    columns,
    NEGATIVES: tl.constexpr,
    IDS: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a row: logsumexp; with NEGATIVES also exp(logits - row maximum) and 1 / their sum."""
    row = tl.program_id(0).to(tl.int64)
    largest = LOWEST
    total = 0.0
    for start in range(0, columns, BLOCK):
        value, column, inside = _piece_of_row(
            logits, column_bias, row_ids, column_ids, diagonal, row, start, columns, NEGATIVES, IDS, BLOCK
        )
        above = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(value - above), axis=0)
        largest = above
    tl.store(logsumexp + row, largest + tl.log(total))
    if NEGATIVES:
        tl.store(inverse + row, tl.where(total > 0.0, 1.0 / total, 0.0))
        for start in range(0, columns, BLOCK):
            value, column, inside = _piece_of_row(
                logits, column_bias, row_ids, column_ids, diagonal, row, start, columns, NEGATIVES, IDS, BLOCK
            )
            tl.store(weights + row * columns + column, _rounded(tl.exp(value - largest), ROUND), mask=inside)


@triton.jit
def _column_sums_kernel(weights, factors, sums, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program a block of columns: the sum of factor times row, added into `sums`."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.load(sums + column, mask=column < columns, other=0.0)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        factor = tl.load(factors + row, mask=row < rows, other=0.0)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(factor[:, None] * weight, axis=0)
    tl.store(sums + column, total, mask=column < columns)


@triton.jit
def _column_logsumexp_kernel(logits, sums, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program a block of columns: their logsumexp, added into `sums`."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    before = tl.load(sums + column, mask=column < columns, other=0.0)
    # What was summed before counts as one term of size exp(before), nothing (-inf) as none.
    largest = tl.maximum(before, LOWEST)
    total = tl.where(before > LOWEST, 1.0, 0.0)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        value = tl.load(logits + at, mask=inside, other=-float("inf"))
        above = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(value - above[None, :]), axis=0)
        largest = above
    tl.store(sums + column, largest + tl.log(total), mask=column < columns)


class TritonSteps(Steps):
    """`Steps` with the kernels above; sums are float32."""

    def _operand_like(self, name: str, tile: Tensor) -> Tensor:
        return self.buffer(name, tile.shape[0], tile.shape[1], torch.bfloat16 if self.narrow else torch.float32)

    @property
    def _round(self) -> bool:
        return self.precision == "bf16" and not self.narrow

    def exponentials(
        self, scores: Tensor, row_bias: Tensor, column_bias: Tensor, row_sums: Tensor, column_sums: Tensor | None
    ) -> Tensor:
        weights = self._operand_like("weights", scores)
        _exponentials_kernel[_blocks(scores)](
            scores,
            row_bias,
            column_bias,
            weights,
            row_sums,
            row_sums if column_sums is None else column_sums,
            *scores.shape,
            column_sums is not None,
            self._round,
            ROWS,
            COLUMNS,
            **OPTIONS,
        )
        return weights

    def exponentials_and_gradient(
        self,
        scores: Tensor,
        row_bias: Tensor,
        column_bias: Tensor,
        pulled: Tensor,
        pulled_row_bias: Tensor,
        pulled_column_bias: Tensor | None,
        row_sums: Tensor,
        column_sums: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        weights, gradient = self._operand_like("weights", scores), self._operand_like("gradient", scores)
        _exponentials_and_gradient_kernel[_blocks(scores)](
            scores,
            row_bias,
            column_bias,
            pulled,
            pulled_row_bias,
            pulled_row_bias if pulled_column_bias is None else pulled_column_bias,
            weights,
            gradient,
            row_sums,
            row_sums if column_sums is None else column_sums,
            *scores.shape,
            pulled_column_bias is not None,
            column_sums is not None,
            self._round,
            ROWS,
            COLUMNS,
            **OPTIONS,
        )
        return weights, gradient

    def softmax_of_rows(
        self, logits: Tensor, column_bias: Tensor, positives: Positives
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = logits.shape
        logsumexp, inverse = logits.new_empty(2, rows, 1).unbind()
        weights = self._operand_like("weights", logits)
        has_ids = positives.row_ids is not None
        _rows_kernel[(rows,)](
            logits,
            column_bias,
            positives.row_ids if has_ids else logits,
            positives.column_ids if has_ids else logits,
            positives.diagonal,
            logsumexp,
            inverse,
            weights,
            columns,
            True,
            has_ids,
            self._round,
            ELEMENTS,
            **OPTIONS,
        )
        return logsumexp, weights, inverse

    def add_column_sums(self, column_sums: Tensor, weights: Tensor, factors: Tensor) -> None:
        rows, columns = weights.shape
        _column_sums_kernel[(triton.cdiv(columns, COLUMNS),)](
            weights, factors, column_sums, rows, columns, ROWS, COLUMNS, **OPTIONS
        )

    def logsumexp_of_both(self, logits: Tensor, column: Tensor) -> Tensor:
        rows, columns = logits.shape
        _column_logsumexp_kernel[(triton.cdiv(columns, COLUMNS),)](
            logits, column, rows, columns, ROWS, COLUMNS, **OPTIONS
        )
        logsumexp = logits.new_empty(rows, 1)
        _rows_kernel[(rows,)](
            logits,
            logits,
            logits,
            logits,
            0,
            logsumexp,
            logsumexp,
            logits,
            columns,
            False,
            False,
            False,
            ELEMENTS,
            **OPTIONS,
        )
        return logsumexp

    def softmax_of_both(
        self, logits: Tensor, row: Tensor, column: Tensor, diagonal: int, row_sums: Tensor, column_sums: Tensor
    ) -> Tensor:
        weights = self._operand_like("weights", logits)
        _both_kernel[_blocks(logits)](
            logits,
            row,
            column,
            weights,
            row_sums,
            column_sums,
            diagonal,
            *logits.shape,
            self._round,
            ROWS,
            COLUMNS,
            **OPTIONS,
        )
        return weights


def _blocks(tile: Tensor) -> tuple[int, int]:
    return (triton.cdiv(tile.shape[0], ROWS), triton.cdiv(tile.shape[1], COLUMNS))
