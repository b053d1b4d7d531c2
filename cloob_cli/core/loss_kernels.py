"""The steps of `loss_steps.py` in fused Triton kernels: each reads a tile once or twice and writes its operands.

The matrix products between them stay with the vendor's library, which comes nearer to the limit of the matrix units
than tiles written by hand: at D = 512 the sums of a tile of the second product alone would fill a multiprocessor's
registers. What the kernels save is the traffic in between, a read and a write of the whole tile for each step.

Checked against the plain steps through Triton's interpreter (TRITON_INTERPRET=1); their speed has not been measured.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from cloob_cli.core.loss_steps import Steps

ELEMENTS = 4096  # of a flat piece, or of a row, that one program works on at a time
COLUMNS, ROWS = 64, 64  # of the block that sums over columns
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
LOWEST = tl.constexpr(-1e30)  # below every logit and, unlike -inf, subtractable from itself


@triton.jit
def _rounded(value, ROUND: tl.constexpr):
    """Where operands are float32 that stand for bfloat16, round them here; else the store converts."""
    return value.to(tl.bfloat16).to(tl.float32) if ROUND else value


@triton.jit
def _exponentials_kernel(scores, weights, elements, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    value = tl.exp(tl.load(scores + at, mask=inside, other=0.0))
    tl.store(weights + at, _rounded(value, ROUND), mask=inside)


@triton.jit
def _exponentials_and_gradient_kernel(
    scores, pulled, weights, gradient, elements, ROUND: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    value = tl.exp(tl.load(scores + at, mask=inside, other=0.0))
    change = value * tl.load(pulled + at, mask=inside, other=0.0)
    tl.store(weights + at, _rounded(value, ROUND), mask=inside)
    tl.store(gradient + at, _rounded(change, ROUND), mask=inside)


@triton.jit
def _logits_of_row(
    logits, ids, row, first, start, columns, LEAVE_OUT: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr
):
    """A piece of a row; -inf beyond its end and, if asked for, where a column is no negative of the row."""
    column = start + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(logits + row * columns + column, mask=inside, other=-float("inf"))
    if LEAVE_OUT:
        value = tl.where(column == first + row, -float("inf"), value)
        if IDS:
            own = tl.load(ids + first + row)
            value = tl.where(tl.load(ids + column, mask=inside, other=0) == own, -float("inf"), value)
    return value, column, inside


@triton.jit
def _rows_kernel(
    logits,
    ids,
    first,
    logsumexp,
    inverse,
    weights,
    columns,
    LEAVE_OUT: tl.constexpr,
    IDS: tl.constexpr,
    WRITE: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a row: logsumexp, 1 / sum of exp(logits - row maximum) and, with WRITE, these exponentials."""
    row = tl.program_id(0).to(tl.int64)
    largest = LOWEST
    total = 0.0
    for start in range(0, columns, BLOCK):
        value, column, inside = _logits_of_row(logits, ids, row, first, start, columns, LEAVE_OUT, IDS, BLOCK)
        above = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(value - above), axis=0)
        largest = above
    tl.store(logsumexp + row, largest + tl.log(total))
    if WRITE:
        tl.store(inverse + row, 1.0 / total)
        for start in range(0, columns, BLOCK):
            value, column, inside = _logits_of_row(logits, ids, row, first, start, columns, LEAVE_OUT, IDS, BLOCK)
            tl.store(weights + row * columns + column, _rounded(tl.exp(value - largest), ROUND), mask=inside)


@triton.jit
def _gradient_of_rows_kernel(scores, pulled, weights, gradient, columns, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    """A program a row: E = exp(scores - row maximum), and E * (pulled - mean of pulled under E)."""
    row = tl.program_id(0).to(tl.int64)
    largest = LOWEST
    total = 0.0
    summed = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(scores + row * columns + column, mask=inside, other=-float("inf"))
        change = tl.load(pulled + row * columns + column, mask=inside, other=0.0)
        above = tl.maximum(largest, tl.max(value, axis=0))
        value = tl.exp(value - above)
        shrink = tl.exp(largest - above)
        total = total * shrink + tl.sum(value, axis=0)
        summed = summed * shrink + tl.sum(value * change, axis=0)
        largest = above
    mean = summed / total
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.exp(tl.load(scores + row * columns + column, mask=inside, other=0.0) - largest)
        change = value * (tl.load(pulled + row * columns + column, mask=inside, other=0.0) - mean)
        tl.store(weights + row * columns + column, _rounded(value, ROUND), mask=inside)
        tl.store(gradient + row * columns + column, _rounded(change, ROUND), mask=inside)


@triton.jit
def _columns_kernel(logits, sums, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program a block of columns: their logsumexp, added into `sums`."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    largest = tl.maximum(tl.load(sums + column, mask=inside, other=0.0), LOWEST)
    # What was summed before counts as one term of size exp(sums); nothing (-inf) counts as none.
    total = tl.where(tl.load(sums + column, mask=inside, other=0.0) > LOWEST, 1.0, 0.0)
    for start in range(0, rows, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        valid = (row < rows)[:, None] & inside[None, :]
        value = tl.load(logits + row[:, None] * columns + column[None, :], mask=valid, other=-float("inf"))
        above = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(value - above[None, :]), axis=0)
        largest = above
    tl.store(sums + column, largest + tl.log(total), mask=inside)


@triton.jit
def _both_kernel(logits, row_sums, column_sums, weights, columns, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    """A program a piece of a row: both softmaxes, given their logsumexps."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(logits + row * columns + column, mask=inside, other=0.0)
    by_column = tl.load(column_sums + column, mask=inside, other=0.0)
    both = tl.exp(value - tl.load(row_sums + row)) + tl.exp(value - by_column)
    tl.store(weights + row * columns + column, _rounded(both, ROUND), mask=inside)


class TritonSteps(Steps):
    """`Steps` with the kernels above; float32 sums only."""

    def _operand_like(self, name: str, tile: Tensor) -> Tensor:
        return self.buffer(name, *tile.shape, torch.bfloat16 if self.narrow else torch.float32)

    @property
    def _round(self) -> bool:
        return self.precision == "bf16" and not self.narrow

    def exponentials(self, scores: Tensor) -> Tensor:
        weights = self._operand_like("weights", scores)
        _exponentials_kernel[_pieces(scores)](scores, weights, scores.numel(), self._round, ELEMENTS, **OPTIONS)
        return weights

    def exponentials_and_gradient(self, scores: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        weights, gradient = self._operand_like("weights", scores), self._operand_like("gradient", scores)
        _exponentials_and_gradient_kernel[_pieces(scores)](
            scores, pulled, weights, gradient, scores.numel(), self._round, ELEMENTS, **OPTIONS
        )
        return weights, gradient

    def exponentials_of_rows(self, scores: Tensor) -> Tensor:
        return self._rows(scores)[1]

    def exponentials_and_gradient_of_rows(self, scores: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        weights, gradient = self._operand_like("weights", scores), self._operand_like("gradient", scores)
        _gradient_of_rows_kernel[(len(scores),)](
            scores, pulled, weights, gradient, scores.shape[1], self._round, ELEMENTS, **OPTIONS
        )
        return weights, gradient

    def softmax_rows(self, logits: Tensor, first: int, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self._rows(logits, first, ids, leave_out=True)

    def logsumexp_both(self, logits: Tensor, column: Tensor) -> Tensor:
        rows, columns = logits.shape
        _columns_kernel[(triton.cdiv(columns, COLUMNS),)](logits, column, rows, columns, ROWS, COLUMNS, **OPTIONS)
        return self._rows(logits, write=False)[0]

    def softmax_both(self, logits: Tensor, row: Tensor, column: Tensor) -> Tensor:
        weights = self._operand_like("weights", logits)
        rows, columns = logits.shape
        grid = (rows, triton.cdiv(columns, ELEMENTS))
        _both_kernel[grid](logits, row, column, weights, columns, self._round, ELEMENTS, **OPTIONS)
        return weights

    def _rows(
        self, logits: Tensor, first: int = 0, ids: Tensor | None = None, leave_out: bool = False, write: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = logits.shape
        logsumexp, inverse = logits.new_empty(2, rows, 1).unbind()
        weights = self._operand_like("weights", logits) if write else logits
        _rows_kernel[(rows,)](
            logits,
            logits if ids is None else ids,
            first,
            logsumexp,
            inverse,
            weights,
            columns,
            leave_out,
            ids is not None,
            write,
            self._round,
            ELEMENTS,
            **OPTIONS,
        )
        return logsumexp, weights, inverse


def _pieces(tile: Tensor) -> tuple[int]:
    return (triton.cdiv(tile.numel(), ELEMENTS),)


@cache
def obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot serve on `device`; None if they can.

    On the first call every step runs once on a small tile, in every precision, and is compared with the plain one: what
    a driver, a compiler or a version of torch gets wrong is found here and not in a model.
    """
    if device.type != "cuda" and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"they need a CUDA device, not {device.type}"
    for precision in ("fp32", "bf16"):
        try:
            error = _largest_error(device, precision)
        except Exception as problem:
            return (
                f"their check failed ({type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''})"
            )
        if not error < (1e-5 if precision == "fp32" else 3e-2):
            return f"their check found an error of {error:.1e} in {precision}"
    return None


def _largest_error(device: torch.device, precision: str) -> float:
    """The largest difference between a kernel's result and the plain step's in float64."""
    generator = torch.Generator().manual_seed(0)
    left, right, pulled = (torch.randn(70, 24, generator=generator).to(device) for _ in range(3))
    ids = torch.randint(0, 5, (70,), generator=generator).to(device)
    fused = TritonSteps(device, torch.float32, precision, (70, 70), 70 * 70)
    plain = Steps(device, torch.float32, precision, (70, 70), 70 * 70)
    first, m = 9, 33

    def results(steps: Steps) -> list[Tensor]:
        def scores() -> Tensor:
            return steps.product("scores", steps.operand(left[:m]), steps.operand(right).T, 0.2)

        def change() -> Tensor:
            return steps.product("pulled", steps.operand(left[:m]), steps.operand(pulled).T)

        column = torch.full((70,), -torch.inf, device=device)
        found = []

        def keep(*tensors: Tensor) -> None:  # steps use their memory again
            found.extend(tensor.float().clone() for tensor in tensors)

        keep(scores())
        keep(steps.exponentials(scores()))
        keep(*steps.exponentials_and_gradient(scores(), change()))
        keep(steps.exponentials_of_rows(scores()))
        keep(*steps.exponentials_and_gradient_of_rows(scores(), change()))
        keep(*steps.softmax_rows(scores(), first, ids))
        keep(*steps.softmax_rows(scores(), first, None))
        row = steps.logsumexp_both(scores(), column)
        weights = steps.softmax_both(scores(), row, column)
        keep(row, column, weights, steps.add_product(torch.ones(m, 24, device=device), weights, steps.operand(right)))
        return found

    with fused.matmul_precision():
        pairs = zip(results(fused), results(plain), strict=True)
        return max(float(((a - b).abs() / b.abs().clamp_min(1)).max()) for a, b in pairs)
