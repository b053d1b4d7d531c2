"""Operations on a tile of scores, in plain torch; `triton_steps.py` has the same as fused Triton kernels.

A tile is a piece [m, n] of a score matrix. Products take operands (embeddings in the dtype that enters the matrix unit)
and accumulate in the dtype of the result: float32, or float64 where the inputs are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cloob_cli.core.device import matmul_precision

LOWEST = -1e30  # below every logit and, unlike -inf, subtractable from itself


@dataclass(frozen=True)
class TileSizes:
    """Sizes of the pieces that score matrices are cut into.

    `tile`: rows and columns of a tile of the retrieval; also the rows of a block from another process, and of a chunk
    beside it. `chunk_elements`: size of a chunk of whole rows. `chunk_rows`: rows that a chunk has at least, however
    long they are; fewer would add to the gradient of all partners more often than the products can cover.
    """

    tile: tuple[int, int]
    chunk_elements: int
    chunk_rows: int = 1


# A tile and its copies stay in the cache of a CPU core (measured with tests/benchmarks/bench_loss.py); a GPU's holds
# part of them.
TILE_SIZES = {
    "cpu": TileSizes(tile=(256, 512), chunk_elements=1 << 20, chunk_rows=64),
    "mps": TileSizes(tile=(1024, 2048), chunk_elements=1 << 22, chunk_rows=128),
    "cuda": TileSizes(tile=(2048, 4096), chunk_elements=1 << 23, chunk_rows=256),
}


@dataclass(frozen=True)
class Exponents:
    """The vectors of a tile E = exp(scores + row_bias + column_bias): biases, and sums that grow in place.

    With `less_common`, E stands for E - exp(row_bias + column_bias): what all rows have in common is left out. A tile
    of changes, where there is one, lacks `row_change` and `column_change`, which are to be added.
    """

    row_bias: Tensor
    column_bias: Tensor
    row_sums: Tensor
    column_sums: Tensor
    less_common: bool
    row_change: Tensor
    column_change: Tensor


@dataclass(frozen=True)
class RowSoftmax:
    """Logits [m, n]; of rows maxima and sums of exp(logits - maximum), [m, 1]; in plain torch the exponentials."""

    logits: Tensor
    largest: Tensor
    total: Tensor
    exponentials: Tensor | None = None


class Steps:
    """Plain torch on any device.

    Args:
        device, dtype: of the embeddings; `dtype` (float32 or float64) is that of every sum.
        precision: "fp32", "tf32" (CUDA's rounding inside the product) or "bf16" (operands rounded to bfloat16).
        sizes: of tiles and chunks; None: those of the device.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, precision: str = "fp32", sizes: TileSizes | None = None
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.precision = "fp32" if dtype == torch.float64 else precision
        self.sizes = sizes or TILE_SIZES.get(device.type, TILE_SIZES["cuda"])
        # Where there is no product of bfloat16 operands with float32 results, operands are rounded but stay float32,
        # which gives the same numbers.
        on_cuda = device.type == "cuda" and self.precision == "bf16"
        self.narrow = on_cuda and _has_narrow_products(device)
        # The rounding of tf32 leaves numbers that are already bfloat16 as they are.
        self._tf32 = self.precision == "tf32" or (on_cuda and not self.narrow)
        self._buffers: dict[str, Tensor] = {}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Device, no autocast and precision of products as the steps need them, whatever the program around has set."""
        # Triton launches on the current device, which need not be that of the embeddings.
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with on_device, torch.autocast(self.device.type, enabled=False), matmul_precision(tf32=self._tf32):
            yield

    def chunks(self, rows: int, columns: int, tallest: int | None = None) -> list[slice]:
        """Pieces of `rows` rows, each of whole rows of `columns` elements; of at most `tallest` rows."""
        height = min(max(self.sizes.chunk_rows, self.sizes.chunk_elements // columns), tallest or rows or 1)
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

    # The kernels replace what follows. Every step takes a tile, may overwrite what it is given, and adds to sums in
    # place.

    def exponentials(
        self, scores: Tensor, vectors: Exponents, change: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """E (see `Exponents`), an operand, and its sums. With `change` [m, n] also G = exp(scores and biases) change,
        another operand; the sums are those of G.
        """
        if change is not None:
            change.add_(vectors.row_change[:, None]).add_(vectors.column_change)
        if vectors.less_common:
            row_factor, column_factor = vectors.row_bias.exp()[:, None], vectors.column_bias.exp()
            weights = scores.expm1_()
            if change is not None:
                change.addcmul_(change, weights).mul_(row_factor).mul_(column_factor)
            weights.mul_(row_factor).mul_(column_factor)
        else:
            # In this order: where row_bias is less the maximum of scores + column_bias, exactly 0 remains of it.
            weights = scores.add_(vectors.column_bias).add_(vectors.row_bias[:, None]).exp_()
            if change is not None:
                change.mul_(weights)
        _add_sums(weights if change is None else change, vectors.row_sums, vectors.column_sums)
        return self.operand(weights), None if change is None else self.operand(change)

    def softmax_of_rows(self, logits: Tensor, column_bias: Tensor, keep_logits: bool) -> RowSoftmax:
        """Add the biases; find what a softmax over rows needs. Logits of -inf do not count.

        A row in which nothing counts has the maximum `LOWEST` and the sum 0. Without `keep_logits` the exponentials
        may take their memory.
        """
        largest = logits.add_(column_bias).amax(dim=1, keepdim=True).clamp_min_(LOWEST)
        out = self.buffer("exponentials", *logits.shape) if keep_logits else logits
        exponentials = torch.sub(logits, largest, out=out).exp_()
        return RowSoftmax(logits, largest, exponentials.sum(dim=1, keepdim=True), exponentials)

    def add_column_logsumexp(self, logits: Tensor, column: Tensor) -> None:
        """Add the logsumexp of each column into `column` [n]."""
        torch.logaddexp(column, logits.logsumexp(dim=0), out=column)

    def softmax_gradient(
        self, softmax: RowSoftmax, factor: Tensor, columns: Tensor | None, diagonal: int, sums: tuple[Tensor, Tensor]
    ) -> Tensor:
        """factor [m, 1] * exp(logits - maximum), less 1 where column = diagonal + row: the gradient, for the logits, of
        logsumexp of rows less positives. With `columns` [n], their logsumexp, that of both directions. An operand; its
        exact sums are added to those of rows and columns.
        """
        assert softmax.exponentials is not None
        weights = softmax.exponentials.mul_(factor)
        if columns is not None:
            weights.add_(softmax.logits.sub_(columns).exp_())
        weights.diagonal(diagonal).sub_(1 if columns is None else 2)
        _add_sums(weights, *sums)
        return self.operand(weights)


@cache
def _has_narrow_products(device: torch.device) -> bool:
    """Find out, by doing it once, if bfloat16 matrices can be multiplied and added to a float32 one in place.

    CUDA can in newer torch; where some versions have the product, they cannot add it to a float32 matrix.
    """
    operand = torch.arange(-128.0, 128.0, device=device).view(16, 16) / 64  # exact in bfloat16
    with torch.autocast(device.type, enabled=False):
        expected = 1 + 0.5 * operand @ operand
    result = torch.ones_like(operand)
    narrow = operand.bfloat16()
    try:
        torch.addmm(result, narrow, narrow, out_dtype=torch.float32, alpha=0.5, out=result)
    except Exception:  # the overload may be missing, or refuse dtypes or devices
        return False
    return torch.allclose(result, expected, rtol=1e-5, atol=1e-5)


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """The inner products [n] of the rows of two matrices [n, D], with little memory beside them."""
    pieces = zip(left.split(1024), right.split(1024), strict=True)
    return torch.cat([torch.linalg.vecdot(*pair) for pair in pieces])


def _add_sums(tile: Tensor, row_sums: Tensor, column_sums: Tensor) -> None:
    row_sums.add_(tile.sum(dim=1))
    column_sums.add_(tile.sum(dim=0))
