"""`loss_kernels_run.py compile|compile-short`: every kernel through Triton's compiler for an H100; needs no GPU.

`TRITON_INTERPRET=1 loss_kernels_run.py interpret|short`: the loss with kernels, run by Triton's interpreter, against
the definition in float64. Both print one JSON document.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch
import triton
import triton.language as tl
from narrow_steps import narrow
from torch.nn.functional import normalize
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cloob_cli.core import loss
from cloob_cli.core.loss import contrastive_loss, triton_steps
from cloob_cli.core.loss.steps import TILE_SIZES, TileSizes


def type_of(argument: str, operands: str) -> str:
    if argument in ("weights", "gradient"):
        return operands
    return "i32" if argument in ("rows", "columns", "diagonal") else "*fp32"


OPERANDS = (("*bf16", True), ("*fp32", True), ("*bf16", False))  # dtype, and whether sizes are multiples of 16


def compile_all(short: bool) -> dict[str, int]:
    """Count the kernels' variants that compile to machine code for compute capability 9.0: with every set of flags,
    with operands in both dtypes, and with sizes that are and that are not multiples of 16.

    The short form takes one kind of operands for each set of flags, every kind in turn.
    """
    kinds = itertools.cycle(OPERANDS)
    compiled: dict[str, int] = {}
    for name, kernel in vars(triton_steps).items():
        if not name.endswith("_kernel"):
            continue
        flags = [key for key in kernel.arg_names if key.isupper()]
        for values in itertools.product([False, True], repeat=len(flags)):
            constants = dict(zip(flags, values, strict=True))
            for operands, aligned in [next(kinds)] if short else OPERANDS:
                signature = {
                    key: "constexpr" if key in constants else type_of(key, operands) for key in kernel.arg_names
                }
                divisible = {
                    (place,): [["tt.divisibility", 16]]
                    for place, key in enumerate(kernel.arg_names)
                    if aligned and signature[key].startswith(("*", "i"))
                }
                source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
                result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=triton_steps.OPTIONS)
                assert result.asm["cubin"]
                compiled[name] = compiled.get(name, 0) + 1
    return compiled


CASES = (
    ("cloob", "bf16", True, 8.0),
    ("clip", "fp32", True, 8.0),
    ("cloob", "fp32", True, 8.0),
    ("cloob", "fp32", False, 100.0),  # with row maxima
    ("infoloob", "fp32", True, 8.0),
    ("infoloob", "bf16", False, 8.0),
)


def interpret_all(short: bool) -> dict[str, object]:
    """Relative gradient errors of the loss with kernels, by objective, precision and mask.

    The short form leaves out the kernels' own check and takes the two cases that run every kernel.
    """
    cpu = torch.device("cpu")
    TILE_SIZES["cpu"] = TileSizes(tile=(36, 40), chunk_elements=1000)
    triton_steps.ELEMENTS = tl.constexpr(32)  # so that a row takes several pieces
    triton_steps.ROWS, triton_steps.COLUMNS = tl.constexpr(32), tl.constexpr(32)
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 41, 96, generator=generator, dtype=torch.float64).unbind()
    x, y = normalize(x, dim=1), normalize(x + noise, dim=1)
    report: dict[str, object] = {} if short else {"obstacle": loss.kernels_obstacle(cpu, torch.float32)}
    if short:
        loss.kernels_obstacle = lambda *_: None
    triton_steps.TritonSteps = narrow(triton_steps.TritonSteps)
    for objective, precision, masked, scale_hopfield in CASES[:2] if short else CASES:
        ids = torch.arange(41).repeat_interleave(3).view(41, 3)[:, 1] // 2 if masked else None  # not contiguous
        # InfoNCE's gradient all but vanishes for pairs as alike as these at a larger inv_tau.
        options = {"objective": objective, "caption_ids": ids, "scale_hopfield": scale_hopfield, "inv_tau": 5.0}
        expected = gradient(x, y, torch.float64, **options)
        found = gradient(x, y, torch.float32, implementation="triton", precision=precision, **options)
        report[f"{objective} {precision} {scale_hopfield:g}"] = float((found - expected).norm() / expected.norm())
    return report


def gradient(x, y, dtype, implementation="definition", **options) -> torch.Tensor:
    x, y = (rows.to(dtype).clone().requires_grad_() for rows in (x, y))
    contrastive_loss(x, y, implementation=implementation, **options).backward()
    return torch.cat([x.grad, y.grad]).double()


if __name__ == "__main__":
    done = compile_all if sys.argv[1].startswith("compile") else interpret_all
    print(json.dumps(done(short=sys.argv[1].endswith("short"))))
