"""What a tile of scores goes through, in plain torch; `loss_kernels.py` does the same in fused Triton kernels.

A tile is a piece [m, n] of a score matrix. Products take operands (embeddings in the number format that enters the
matrix unit) and accumulate in the format of the result: float32, or float64 where the inputs are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Steps:
    """Plain torch on any device.

    Args:
        device, dtype: of the embeddings; `dtype` (float32 or float64) is the format of every sum.
        precision: "fp32", "tf32" (CUDA's rounding inside the product) or "bf16" (operands rounded to bfloat16).
        tile: rows and columns of a tile of the retrieval.
        chunk_elements: size of a chunk of whole rows, where the sum over a row is needed before anything else.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, precision: str, tile: tuple[int, int], chunk_elements: int
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.precision = "fp32" if dtype == torch.float64 else precision
        self.tile = tile
        self.chunk_elements = chunk_elements
        # bfloat16 operands with float32 results: CUDA has a product for that. Elsewhere rounded float32 operands
        # give the same numbers.
        self.narrow = self.precision == "bf16" and device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}

    @contextmanager
    def matmul_precision(self) -> Iterator[None]:
        """The products' own precision, whatever the program around has set."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def chunks(self, rows: int, columns: int) -> list[slice]:
        """Pieces of `rows` rows, each of whole rows of `columns` elements."""
        height = max(1, self.chunk_elements // columns)
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

    def exponentials(self, scores: Tensor) -> Tensor:
        """exp(scores), an operand. May overwrite `scores`."""
        return self.operand(scores.exp_())

    def exponentials_and_gradient(self, scores: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        """E = exp(scores) and E * pulled, two operands. May overwrite both."""
        weights = scores.exp_()
        return self.operand(weights), self.operand(pulled.mul_(weights))

    def exponentials_of_rows(self, scores: Tensor) -> Tensor:
        """exp(scores - row maximum), an operand. May overwrite `scores`."""
        return self.exponentials(scores.sub_(scores.amax(dim=1, keepdim=True)))

    def exponentials_and_gradient_of_rows(self, scores: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        """E = exp(scores - row maximum) and E * (pulled - mean of pulled under E / row sum), two operands."""
        weights = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
        mean = torch.linalg.vecdot(weights, pulled).unsqueeze(1) / weights.sum(dim=1, keepdim=True)
        return self.operand(weights), self.operand(pulled.sub_(mean).mul_(weights))

    def leave_out(self, logits: Tensor, first: int, ids: Tensor | None, keep_diagonal: bool = False) -> Tensor:
        """Set to -inf, in place, what is no negative: the chunk's diagonal, and pairs with equal caption ids.

        logits [m, N] are rows `first`, `first + 1`, ... of the joint matrix; ids int64 [N].
        """
        diagonal = logits.diagonal(first)
        positives = diagonal.clone()
        if ids is not None:
            logits.masked_fill_(ids[first : first + len(logits), None] == ids[None, :], -torch.inf)
        diagonal.copy_(positives if keep_diagonal else torch.full_like(positives, -torch.inf))
        return logits

    def softmax_rows(self, logits: Tensor, first: int, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Over the negatives of each row: logsumexp [m, 1]; exp(logits - row maximum), an operand; 1 / its row sum."""
        largest = self.leave_out(logits, first, ids).amax(dim=1, keepdim=True)
        weights = logits.sub_(largest).exp_()
        total = weights.sum(dim=1, keepdim=True)
        return largest + total.log(), self.operand(weights), 1 / total

    def logsumexp_both(self, logits: Tensor, column: Tensor) -> Tensor:
        """logsumexp of each row [m, 1]; that of each column is added into `column` [N] in place."""
        torch.logaddexp(column, logits.logsumexp(dim=0), out=column)
        return logits.logsumexp(dim=1, keepdim=True)

    def softmax_both(self, logits: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """exp(logits - row) + exp(logits - column), an operand: both softmaxes, given their logsumexps."""
        by_column = torch.sub(logits, column, out=self.buffer("by_column", *logits.shape)).exp_()
        return self.operand(logits.sub_(row).exp_().add_(by_column))
