"""Triton kernels, each of which does a step of `steps.py` in one pass; `triton_steps.py` launches them.

Every matrix and vector that they are given is contiguous. Sums that several programs add to are summed in whatever
order these come, so that the last bits of a result may differ from run to run.

Checked against the plain steps through Triton's interpreter (TRITON_INTERPRET=1); their speed has not been measured.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cloob_cli.core.loss_forms.steps import LOWEST as LOWEST_LOGIT

LOWEST = tl.constexpr(LOWEST_LOGIT)


@triton.jit
def _rounded(value, ROUND: tl.constexpr):
    """Where operands are float32 that stand for bfloat16, round them here; else the store converts."""
    return value.to(tl.bfloat16).to(tl.float32) if ROUND else value


@triton.jit
def _exp_less_one(value):
    """exp(value) - 1 without cancellation: Taylor's series up to 0.5, where its next term is below 1e-7."""
    series = 1.0 + value * (1.0 / 8.0)  # a division would take the time of several products
    series = 1.0 + value * (1.0 / 7.0) * series
    series = 1.0 + value * (1.0 / 6.0) * series
    series = 1.0 + value * (1.0 / 5.0) * series
    series = 1.0 + value * (1.0 / 4.0) * series
    series = 1.0 + value * (1.0 / 3.0) * series
    series = 1.0 + value * (1.0 / 2.0) * series
    return tl.where(tl.abs(value) < 0.5, value * series, tl.exp(value) - 1.0)


@triton.jit
def normalize_kernel(matrix, inverse, width, BLOCK: tl.constexpr):
    """A program a row: unit norm in place, and 1 / (its norm)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(matrix + row * width + column, mask=column < width, other=0.0)
    largest = tl.max(tl.abs(value), axis=0)
    empty = largest == 0.0
    value = value / tl.where(empty, 1.0, largest)
    norm = tl.where(empty, 1.0, tl.sqrt(tl.sum(value * value, axis=0)))
    tl.store(matrix + row * width + column, value / norm, mask=column < width)
    tl.store(inverse + row, tl.where(empty, 0.0, 1.0 / (largest * norm)))


@triton.jit
def pull_through_normalization_kernel(pulled, matrix, inverse, scale, width, BLOCK: tl.constexpr):
    """A program a row: what is at right angles to the row, in place, times scale / (the row's norm); see `Steps`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    at = row * width + column
    pull = tl.load(pulled + at, mask=column < width, other=0.0)
    value = tl.load(matrix + at, mask=column < width, other=0.0)
    across = pull - value * tl.sum(pull * value, axis=0)
    across -= value * tl.sum(across * value, axis=0)
    tl.store(pulled + at, across * (tl.load(inverse + row) * scale), mask=column < width)


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
def _factors(row_bias, column_bias, row, column, rows, columns):
    """exp(row_bias + column_bias)"""
    by_row = tl.exp(tl.load(row_bias + row, mask=row < rows, other=0.0))
    by_column = tl.exp(tl.load(column_bias + column, mask=column < columns, other=0.0))
    return by_row[:, None] * by_column[None, :]


@triton.jit
def _add_sums(value, row_sums, column_sums, row, column, inside, rows, columns, BY_COLUMN: tl.constexpr):
    value = tl.where(inside, value, 0.0)
    tl.atomic_add(row_sums + row, tl.sum(value, axis=1), mask=row < rows)
    if BY_COLUMN:
        tl.atomic_add(column_sums + column, tl.sum(value, axis=0), mask=column < columns)


@triton.jit
def exponentials_kernel(
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
    """A program a block: exp(row_bias + column_bias) (exp(scores) - 1) and its sums."""
    row, column, at, inside = _block(rows, columns, ROWS, COLUMNS)
    weight = _exp_less_one(tl.load(scores + at, mask=inside, other=0.0))
    weight *= _factors(row_bias, column_bias, row, column, rows, columns)
    tl.store(weights + at, _rounded(weight, ROUND), mask=inside)
    _add_sums(weight, row_sums, column_sums, row, column, inside, rows, columns, SUM_COLUMNS)


@triton.jit
def exponentials_and_gradient_kernel(
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
    """A program a block: F as above, and exp(row_bias + column_bias + scores) (pulled + its biases) with its sums."""
    row, column, at, inside = _block(rows, columns, ROWS, COLUMNS)
    pull = _load_biased(pulled, pulled_row_bias, pulled_column_bias, row, column, at, inside, rows, columns, BOTH)
    weight = _exp_less_one(tl.load(scores + at, mask=inside, other=0.0))
    factor = _factors(row_bias, column_bias, row, column, rows, columns)
    change = (pull + pull * weight) * factor
    tl.store(weights + at, _rounded(weight * factor, ROUND), mask=inside)
    tl.store(gradient + at, _rounded(change, ROUND), mask=inside)
    _add_sums(change, row_sums, column_sums, row, column, inside, rows, columns, SUM_COLUMNS)


@triton.jit
def both_kernel(
    logits,
    row_logsumexp,
    column_logsumexp,
    weights,
    row_sums,
    column_sums,
    row_rests,
    column_rests,
    diagonal,
    rows,
    columns,
    RESTS: tl.constexpr,
    ROUND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program a block: both softmaxes, given their logsumexps, less 2 on the diagonal; with RESTS also the sums of
    what bfloat16 leaves of them.
    """
    row, column, at, inside = _block(rows, columns, ROWS, COLUMNS)
    value = tl.load(logits + at, mask=inside, other=0.0)
    by_row = tl.load(row_logsumexp + row, mask=row < rows, other=0.0)
    by_column = tl.load(column_logsumexp + column, mask=column < columns, other=0.0)
    both = tl.exp(value - by_row[:, None]) + tl.exp(value - by_column[None, :])
    both = tl.where(column[None, :] == diagonal + row[:, None], both - 2.0, both)
    tl.store(weights + at, _rounded(both, ROUND), mask=inside)
    _add_sums(both, row_sums, column_sums, row, column, inside, rows, columns, True)
    if RESTS:
        rest = both - both.to(tl.bfloat16).to(tl.float32)
        _add_sums(rest, row_rests, column_rests, row, column, inside, rows, columns, True)


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
def rows_kernel(
    logits,
    column_bias,
    row_ids,
    column_ids,
    diagonal,
    maxima,
    totals,
    weights,
    columns,
    NEGATIVES: tl.constexpr,
    IDS: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a row: its maximum and the sum of exp(logits - maximum); with NEGATIVES also what is summed."""
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
    tl.store(maxima + row, largest)
    tl.store(totals + row, total)
    if NEGATIVES:
        for start in range(0, columns, BLOCK):
            value, column, inside = _piece_of_row(
                logits, column_bias, row_ids, column_ids, diagonal, row, start, columns, NEGATIVES, IDS, BLOCK
            )
            tl.store(weights + row * columns + column, _rounded(tl.exp(value - largest), ROUND), mask=inside)


@triton.jit
def column_sums_kernel(
    weights, factors, sums, rows, columns, SLAB: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program a block of columns in SLAB rows: the sum of factor times row, added into `sums`."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    first = tl.program_id(1) * SLAB
    for start in range(first, tl.minimum(first + SLAB, rows), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        factor = tl.load(factors + row, mask=row < rows, other=0.0)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(factor[:, None] * weight, axis=0)
    tl.atomic_add(sums + column, total, mask=column < columns)


@triton.jit
def column_logsumexp_kernel(logits, sums, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
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
