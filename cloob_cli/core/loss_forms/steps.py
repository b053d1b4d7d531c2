"""What a tile of scores goes through, in plain torch; `triton_steps.py` does the same with fused Triton kernels.

A tile is a piece [m, n] of a score matrix. Products take operands (embeddings in the number format that enters the
matrix unit) and accumulate in the format of the result: float32, or float64 where the inputs are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LOWEST = -1e30  # below every logit and, unlike -inf, subtractable from itself


@dataclass(frozen=True)
class Positives:
    """Which elements of a tile are no negatives.

    Row i has its own positive in column `diagonal + i`, which may lie outside of the tile. Pairs with equal caption
    ids, int64, are no negatives of each other either; without ids none are equal.
    """

    diagonal: int
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None


def positives_of_tile(rows: slice, columns: slice, caption_ids: Tensor | None) -> Positives:
    """Of the tile with these rows and columns of the joint matrix; caption_ids [N] are the joint batch's."""
    if caption_ids is None:
        return Positives(rows.start - columns.start)
    return Positives(rows.start - columns.start, caption_ids[rows], caption_ids[columns])


class Steps:
    """Plain torch on any device.

    Args:
        device, dtype: of the embeddings; `dtype` (float32 or float64) is the format of every sum.
        precision: "fp32", "tf32" (CUDA's rounding inside the product) or "bf16" (operands rounded to bfloat16).
        tile: rows and columns of a tile of the retrieval; also the rows of a block from another process, and of a chunk
            beside it.
        chunk_elements: size of a chunk of whole rows, where the sum over a row is needed before anything else.
        chunk_rows: that a chunk has at least, however long they are.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        precision: str,
        tile: tuple[int, int],
        chunk_elements: int,
        chunk_rows: int = 1,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.precision = "fp32" if dtype == torch.float64 else precision
        self.tile = tile
        self.chunk_elements = chunk_elements
        self.chunk_rows = chunk_rows
        # Where there is no product of bfloat16 operands with float32 results, operands are rounded but stay float32,
        # which gives the same numbers.
        on_cuda = device.type == "cuda" and self.precision == "bf16"
        self.narrow = on_cuda and _has_narrow_products(device)
        # The rounding of tf32 leaves numbers that are already bfloat16 as they are.
        self._tf32 = self.precision == "tf32" or (on_cuda and not self.narrow)
        self._buffers: dict[str, Tensor] = {}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """What the steps run in, whatever the program around has set: device, no autocast, precision of products."""
        # Triton launches on the current device, which need not be that of the embeddings.
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with on_device, torch.autocast(self.device.type, enabled=False), self._matmul_precision():
            yield

    @contextmanager
    def _matmul_precision(self) -> Iterator[None]:
        cuda, cpu = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
        if cpu is None or not hasattr(cuda, "fp32_precision"):  # torch before 2.9
            former = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high" if self._tf32 else "highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(former)
            return
        before = cuda.fp32_precision, cpu.fp32_precision
        cuda.fp32_precision, cpu.fp32_precision = "tf32" if self._tf32 else "ieee", "ieee"
        try:
            yield
        finally:
            cuda.fp32_precision, cpu.fp32_precision = before

    def chunks(self, rows: int, columns: int, tallest: int | None = None) -> list[slice]:
        """Pieces of `rows` rows, each of whole rows of `columns` elements; of at most `tallest` rows."""
        height = min(max(self.chunk_rows, self.chunk_elements // columns), tallest or rows or 1)
        return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]

    def buffer(self, name: str, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for a tile, used again for every tile of that name."""
        held = self._buffers.get(name)
        if held is None or held.numel() < rows * columns:
            held = self._buffers[name] = torch.empty(rows * columns, dtype=dtype or self.dtype, device=self.device)
        return held[: rows * columns].view(rows, columns)

    def operand(self, rows: Tensor) -> Tensor:
        """`rows` as the products take them."""
        if self.precision != "bf16":
            return rows
        return rows.bfloat16() if self.narrow else rows.bfloat16().to(self.dtype)

    def product(self, name: str, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        """scale * left @ right into the buffer `name`."""
        result = self.buffer(name, left.shape[0], right.shape[1])
        return self.add_product(result, left, right, scale, keep=0)

    def add_product(self, result: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, keep: int = 1) -> Tensor:
        """result = keep * result + scale * left @ right, in place."""
        if self.narrow:
            return torch.addmm(result, left, right, out_dtype=result.dtype, beta=keep, alpha=scale, out=result)
        return torch.addmm(result, left, right, beta=keep, alpha=scale, out=result)

    # What follows is what the kernels replace.

    def normalize_rows(self, rows: Tensor) -> Tensor:
        """Give rows [n, D] unit norm in place; returns 1 / (their norms) [n, 1]. Rows of zeros stay zero, with 0.

        A row may be as large as exp(40): its largest element is taken out before anything is squared.
        """
        largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True)
        empty = largest == 0
        rows.div_(largest.masked_fill_(empty, 1))
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).masked_fill_(empty, 1)
        rows.div_(norm)
        return (1 / (largest * norm)).masked_fill_(empty, 0)

    def pull_through_normalization(self, gradient: Tensor, rows: Tensor, inverse: Tensor, scale: float) -> Tensor:
        """scale times the gradient before `normalize_rows` from that after it, in place; both [n, D].

        It is at right angles to the normalized rows; the second time takes out the rounding of the first, which is
        large beside a gradient that points almost along its row.
        """
        for _ in range(2):
            along = torch.linalg.vecdot(gradient, rows).unsqueeze(1)
            gradient.addcmul_(rows, along, value=-1)
        return gradient.mul_(inverse * scale)

    # Every step below takes a tile, may overwrite the scores it is given, and adds to row_sums [m] and column_sums [n],
    # where given, in place.

    def exponentials(
        self, scores: Tensor, row_bias: Tensor, column_bias: Tensor, row_sums: Tensor, column_sums: Tensor | None
    ) -> Tensor:
        """F = exp(row_bias + column_bias) (exp(scores) - 1), an operand, and its sums."""
        weights = scores.expm1_().mul_(row_bias.exp()[:, None]).mul_(column_bias.exp())
        _add_sums(weights, row_sums, column_sums)
        return self.operand(weights)

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
        """F as in `exponentials` and G = exp(row_bias + column_bias + scores) (pulled + its biases), two operands, and
        the sums of G.
        """
        row_factor, column_factor = row_bias.exp()[:, None], column_bias.exp()
        weights = scores.expm1_()
        pulled.add_(pulled_row_bias[:, None])
        if pulled_column_bias is not None:
            pulled.add_(pulled_column_bias)
        gradient = pulled.addcmul_(pulled, weights).mul_(row_factor).mul_(column_factor)
        _add_sums(gradient, row_sums, column_sums)
        return self.operand(weights.mul_(row_factor).mul_(column_factor)), self.operand(gradient)

    def softmax_of_rows(
        self, logits: Tensor, column_bias: Tensor, positives: Positives
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Over the negatives of each row of logits + column_bias: maximum [m, 1]; exp(logits - maximum), an operand;
        its row sums [m, 1]. A row without negatives has `LOWEST`, zeros and 0.
        """
        leave_out(logits.add_(column_bias), positives, keep_diagonal=False)
        largest = logits.amax(dim=1, keepdim=True).clamp_min_(LOWEST)
        weights = logits.sub_(largest).exp_()
        return largest, self.operand(weights), weights.sum(dim=1, keepdim=True)

    def add_column_sums(self, column_sums: Tensor, weights: Tensor, factors: Tensor) -> None:
        """column_sums [n] += the sums over rows of factors [m, 1] * weights [m, n], an operand."""
        column_sums.addmv_(weights.to(self.dtype).T, factors.squeeze(1))

    def logsumexp_of_both(self, logits: Tensor, column: Tensor) -> Tensor:
        """logsumexp of each row [m, 1]; that of each column is added into `column` [n] in place."""
        torch.logaddexp(column, logits.logsumexp(dim=0), out=column)
        return logits.logsumexp(dim=1, keepdim=True)

    def softmax_of_both(
        self,
        logits: Tensor,
        row_logsumexp: Tensor,
        column_logsumexp: Tensor,
        diagonal: int,
        row_sums: Tensor,
        column_sums: Tensor,
    ) -> Tensor:
        """exp(logits - row_logsumexp) + exp(logits - column_logsumexp) - 2 on the diagonal (see `Positives`): what the
        sums of both directions and the positives have as gradient; an operand, and its sums.

        Into the first row of row_sums [2, m] and column_sums [2, n] goes the exact matrix, into the second what it is
        more than the operand.
        """
        by_column = torch.sub(logits, column_logsumexp, out=self.buffer("by_column", *logits.shape)).exp_()
        weights = logits.sub_(row_logsumexp).exp_().add_(by_column)
        weights.diagonal(diagonal).sub_(2)
        _add_sums(weights, row_sums[0], column_sums[0])
        operand = self.operand(weights)
        if self.precision == "bf16":
            _add_sums(weights - operand, row_sums[1], column_sums[1])
        return operand


@cache
def _has_narrow_products(device: torch.device) -> bool:
    """Whether bfloat16 matrices can be multiplied and added to a float32 one in place, found out by doing it once.

    CUDA can in newer torch; where some versions have the product, they cannot add it to a float32 matrix.
    """
    operand = torch.arange(-128.0, 128.0, device=device).view(16, 16) / 64  # exact in bfloat16
    with torch.autocast(device.type, enabled=False):
        expected = 1 + 0.5 * operand @ operand
    result = torch.ones_like(operand)
    narrow = operand.bfloat16()
    try:
        torch.addmm(result, narrow, narrow, out_dtype=torch.float32, alpha=0.5, out=result)
    except Exception:  # the overload may be missing, or refuse formats or devices
        return False
    return torch.allclose(result, expected, rtol=1e-5, atol=1e-5)


def leave_out(logits: Tensor, positives: Positives, keep_diagonal: bool) -> Tensor:
    """Set to -inf, in place, what is no negative: pairs with equal caption ids and, unless kept, the diagonal."""
    diagonal = logits.diagonal(positives.diagonal)
    own = diagonal.clone() if keep_diagonal else None
    if positives.row_ids is not None and positives.column_ids is not None:
        logits.masked_fill_(positives.row_ids[:, None] == positives.column_ids[None, :], -torch.inf)
    if own is None:
        diagonal.fill_(-torch.inf)
    else:
        diagonal.copy_(own)
    return logits


def _add_sums(tile: Tensor, row_sums: Tensor | None, column_sums: Tensor | None) -> None:
    if row_sums is not None:
        row_sums.add_(tile.sum(dim=1))
    if column_sums is not None:
        column_sums.add_(tile.sum(dim=0))
