"""Products of bfloat16 operands with float32 results, which only CUDA has, in their dtypes on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from cloob_cli.core.loss.steps import Steps


def narrow(kind: type[Steps]) -> type[Steps]:
    """`kind` of steps whose operands are bfloat16 tensors in "bf16", as on CUDA."""

    class Narrow(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            self.narrow = self.precision == "bf16"

        def add_product(self, result: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, keep: int = 1) -> Tensor:
            expected = torch.bfloat16 if self.narrow else self.dtype
            assert (left.dtype, right.dtype, result.dtype) == (expected, expected, self.dtype)
            left, right = left.to(self.dtype), right.to(self.dtype)
            return torch.addmm(result, left, right, beta=keep, alpha=scale, out=result)

    return Narrow
