"""The steps of `steps.py` by fused Triton kernels.

The matrix products between them stay with the vendor's library, which comes nearer to the limit of the matrix units
than tiles written by hand: at D = 512 the sums of a tile's second product alone would fill a multiprocessor's
registers. What the kernels save is the traffic in between, a read and a write of the whole tile for each small step.
What `retrieval_rows.py` needs stays plain.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cloob_cli.core.loss_forms import kernels
from cloob_cli.core.loss_forms.steps import Positives, Steps

ELEMENTS = 4096  # of a row, that one program works on at a time
ROWS, COLUMNS = 32, 128  # of a block, that one program works on at a time
SLAB = 128  # rows of a column that one program sums up
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


class TritonSteps(Steps):
    """`Steps` whose arithmetic is in float32."""

    def _operand_like(self, name: str, tile: Tensor) -> Tensor:
        return self.buffer(name, tile.shape[0], tile.shape[1], torch.bfloat16 if self.narrow else torch.float32)

    @property
    def _round(self) -> bool:
        return self.precision == "bf16" and not self.narrow

    def normalize_rows(self, rows: Tensor) -> Tensor:
        inverse = rows.new_empty(len(rows), 1)
        width = rows.shape[1]
        kernels.normalize_kernel[(len(rows),)](rows, inverse, width, triton.next_power_of_2(width), **OPTIONS)
        return inverse

    def pull_through_normalization(self, gradient: Tensor, rows: Tensor, inverse: Tensor, scale: float) -> Tensor:
        width = rows.shape[1]
        kernels.pull_through_normalization_kernel[(len(rows),)](
            gradient, rows, inverse, scale, width, triton.next_power_of_2(width), **OPTIONS
        )
        return gradient

    def exponentials(
        self, scores: Tensor, row_bias: Tensor, column_bias: Tensor, row_sums: Tensor, column_sums: Tensor | None
    ) -> Tensor:
        weights = self._operand_like("weights", scores)
        kernels.exponentials_kernel[_blocks(scores)](
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
        kernels.exponentials_and_gradient_kernel[_blocks(scores)](
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
        maxima, totals = logits.new_empty(2, rows, 1).unbind()
        weights = self._operand_like("weights", logits)
        has_ids = positives.row_ids is not None
        kernels.rows_kernel[(rows,)](
            logits,
            column_bias,
            positives.row_ids if has_ids else logits,
            positives.column_ids if has_ids else logits,
            positives.diagonal,
            maxima,
            totals,
            weights,
            columns,
            True,
            has_ids,
            self._round,
            ELEMENTS,
            **OPTIONS,
        )
        return maxima, weights, totals

    def add_column_sums(self, column_sums: Tensor, weights: Tensor, factors: Tensor) -> None:
        rows, columns = weights.shape
        kernels.column_sums_kernel[(triton.cdiv(columns, COLUMNS), triton.cdiv(rows, SLAB))](
            weights, factors, column_sums, rows, columns, SLAB, ROWS, COLUMNS, **OPTIONS
        )

    def logsumexp_of_both(self, logits: Tensor, column: Tensor) -> Tensor:
        rows, columns = logits.shape
        kernels.column_logsumexp_kernel[(triton.cdiv(columns, COLUMNS),)](
            logits, column, rows, columns, ROWS, COLUMNS, **OPTIONS
        )
        maxima, totals = logits.new_empty(2, rows, 1).unbind()
        kernels.rows_kernel[(rows,)](
            logits,
            logits,
            logits,
            logits,
            0,
            maxima,
            totals,
            logits,
            columns,
            False,
            False,
            False,
            ELEMENTS,
            **OPTIONS,
        )
        return maxima.add_(totals.log_())

    def softmax_of_both(
        self,
        logits: Tensor,
        row_logsumexp: Tensor,
        column_logsumexp: Tensor,
        diagonal: int,
        row_sums: Tensor,
        column_sums: Tensor,
    ) -> Tensor:
        weights = self._operand_like("weights", logits)
        kernels.both_kernel[_blocks(logits)](
            logits,
            row_logsumexp,
            column_logsumexp,
            weights,
            *(row_sums[0], column_sums[0], row_sums[1], column_sums[1]),
            diagonal,
            *logits.shape,
            self.precision == "bf16",
            self._round,
            ROWS,
            COLUMNS,
            **OPTIONS,
        )
        return weights


def _blocks(tile: Tensor) -> tuple[int, int]:
    return (triton.cdiv(tile.shape[0], ROWS), triton.cdiv(tile.shape[1], COLUMNS))
