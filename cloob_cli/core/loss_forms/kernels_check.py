"""Whether the Triton kernels of the loss compute here what they should, found out before they are relied upon."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor

from cloob_cli.core.loss_forms import triton_steps
from cloob_cli.core.loss_forms.steps import Positives, Steps
from cloob_cli.core.loss_forms.triton_steps import TritonSteps


@cache
def obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot serve on `device`; None if they can.

    On the first call every step runs once on two small tiles, in both number formats, and is compared with the plain
    one: what a driver, a compiler or a version of torch gets wrong is found here and not in a model.
    """
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"they need a CUDA device, not {device.type}"
    # Well above rounding, well below any mistake. Triton's interpreter cuts bfloat16 off where hardware rounds.
    for precision, allowed in (("fp32", 1e-4), ("bf16", 0.5 if interpreted else 3e-2)):
        try:
            error = largest_error(device, precision)
        except Exception as problem:  # whatever a compiler or a driver may raise: the plain steps serve
            lines = str(problem).splitlines() or [""]
            return f"their check failed ({type(problem).__name__}: {lines[0]})"
        if not error <= allowed:
            return f"their check found an error of {error:.1e} in {precision}"
    return None


def largest_error(device: torch.device, precision: str) -> float:
    """The largest difference of the kernels on `device` from the plain steps on the CPU, relative to values above 1.

    So the products of bfloat16 operands, which CUDA has and the CPU imitates, are checked on the way.
    """
    fused = TritonSteps(device, torch.float32, precision, (0, 0), 0)
    plain = Steps(torch.device("cpu"), torch.float32, precision, (0, 0), 0)
    # Sizes that are no multiple of anything, and multiples of 16 as in training, with rows of more than one piece.
    sizes = (33, 150), (48, triton_steps.ELEMENTS + 160)
    with fused.prepared():
        pairs = [pair for size in sizes for pair in zip(_results(fused, *size), _results(plain, *size), strict=True)]
        return max(float(_difference(a, b).max()) for a, b in pairs)


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    difference = (found - expected).abs() / expected.abs().clamp_min(1)
    return difference.masked_fill(found == expected, 0)  # also where both are infinite


def _results(steps: Steps, m: int, n: int) -> list[Tensor]:
    """Everything that the steps give for fixed numbers, in float32; tiles are [m, n]."""
    generator = torch.Generator().manual_seed(0)
    left, pulled, right = (torch.randn(rows, 24, generator=generator).to(steps.device) for rows in (m, m, n))
    ids = torch.randint(0, 5, (n,), generator=generator).to(steps.device)
    nothing_but_positives = Positives(0, torch.zeros_like(ids[:m]), torch.zeros_like(ids))
    row_bias, column_bias = left[:, 0].contiguous(), right[:, 0].contiguous()
    found: list[Tensor] = []

    def keep(*tensors: Tensor) -> None:  # as copies, since steps use their memory again
        found.extend(tensor.float().cpu().clone() for tensor in tensors)

    def scores() -> Tensor:
        return steps.product("scores", steps.operand(left), steps.operand(right).T, 0.2)

    def change() -> Tensor:
        return steps.product("pulled", steps.operand(pulled), steps.operand(right).T)

    rows = left * torch.logspace(-30, 30, m, device=steps.device)[:, None]
    rows[3] = 0
    inverse = steps.normalize_rows(rows)
    keep(rows, inverse, steps.pull_through_normalization(pulled.clone(), rows, inverse.clamp(max=1), 0.3))
    for both in (False, True):
        row_sums, column_sums = torch.zeros_like(row_bias), torch.zeros_like(column_bias)
        keep(steps.exponentials(scores(), row_bias, column_bias, row_sums, column_sums if both else None))
        keep(row_sums, column_sums)
        biases = (row_bias, column_bias if both else None)
        sums = (row_sums, column_sums if both else None)
        keep(*steps.exponentials_and_gradient(scores(), row_bias, column_bias, change(), *biases, *sums))
        keep(row_sums, column_sums)
    for some_positives in (Positives(9), Positives(-9, ids[:m], ids), Positives(200), nothing_but_positives):
        maxima, weights, totals = steps.softmax_of_rows(scores(), column_bias, some_positives)
        column_sums = torch.ones_like(column_bias)
        steps.add_column_sums(column_sums, weights, 1 / (1 + totals))
        keep(maxima, weights, totals, column_sums)
    column = torch.full_like(column_bias, -torch.inf)
    row = steps.logsumexp_of_both(scores(), column)
    row = steps.logsumexp_of_both(scores(), column)  # a second chunk, which finds sums of the first
    row_sums, column_sums = row_bias.new_zeros(2, m), column_bias.new_zeros(2, n)
    weights = steps.softmax_of_both(scores(), row, column, -9, row_sums, column_sums)
    keep(row, column, weights, row_sums, column_sums)
    keep(steps.add_product(torch.ones(m, 24, device=steps.device), weights, steps.operand(right)))
    keep(steps.add_product(torch.ones(n, 24, device=steps.device), weights.T, steps.operand(left)))
    return found
