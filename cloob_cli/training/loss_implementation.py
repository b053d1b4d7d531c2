"""The implementation of the loss that a run takes: on a GPU the one that proves fastest at the run's own shape."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cloob_cli.core.distributed import RowLayout, largest_over_processes, row_layout
from cloob_cli.core.loss import TILED_FROM, Implementation, Objective, Precision, contrastive_loss, kernels_obstacle

# Above, a dozen N x N matrices might not fit beside the model.
_DEFINITION_UP_TO = 4096


class LossImplementation(NamedTuple):
    """The implementation, and the reason for it in words."""

    name: Implementation
    reason: str


def choose_implementation(
    requested: Implementation,
    rows: int,
    width: int,
    device: torch.device,
    objective: Objective = "cloob",
    precision: Precision = "fp32",
    group: ProcessGroup | None = None,
    scale_hopfield: float = 8.0,
) -> LossImplementation:
    """The implementation for batches of which this process has `rows` [rows, width] in float32.

    "auto" goes by the number of pairs on a CPU, where that was measured once for all
    (tests/benchmarks/bench_loss.py); on other devices it is a measurement, a few times as long as the loss of one step.
    "triton" is a wish: "tiled" stands in for kernels that cannot serve. All processes of the group must call this
    together, and get the same answer.
    """
    layout, _ = row_layout(rows, device, group)
    obstacle = None
    if requested == "triton" or (requested == "auto" and device.type == "cuda"):
        obstacle = kernels_obstacle(device, torch.float32)
        if largest_over_processes(torch.tensor(float(obstacle is not None), device=device), layout) and not obstacle:
            obstacle = "another process found an obstacle"
    if requested == "triton" and obstacle:
        return LossImplementation("tiled", f"the Triton kernels cannot serve: {obstacle}")
    if requested != "auto":
        return LossImplementation(requested, "as asked for")
    if device.type != "cpu":
        return measure_implementations(
            layout, width, device, objective, precision, device.type == "cuda" and not obstacle, scale_hopfield
        )
    if layout.processes == 1 and layout.total < TILED_FROM:
        return LossImplementation("definition", f"{layout.total} pairs are fewer than {TILED_FROM}")
    return LossImplementation("tiled", f"{layout.total} pairs on a CPU")


def measure_implementations(
    layout: RowLayout,
    width: int,
    device: torch.device,
    objective: Objective,
    precision: Precision,
    kernels: bool,
    scale_hopfield: float,
) -> LossImplementation:
    """Run each implementation forward and backward on random embeddings of the joint shape, and choose the fastest.

    Of several processes the slowest counts. The definition, which needs N x N matrices, is tried on one process with up
    to 4,096 pairs; the Triton kernels where they can serve (`kernels`).
    """
    names: list[Implementation] = ["tiled"]
    names += ["triton"] if kernels else []
    names += ["definition"] if layout.processes == 1 and layout.total <= _DEFINITION_UP_TO else []
    generator = torch.Generator().manual_seed(layout.rank)
    own = torch.randn(2, layout.counts[layout.rank], width, generator=generator)
    seconds = []
    for name in names:
        for _ in range(2):  # the first time compiles, and fills caches
            x, y = (normalize(rows, dim=1).to(device).requires_grad_() for rows in own)
            start = time.perf_counter()
            contrastive_loss(
                x,
                y,
                objective,
                scale_hopfield=scale_hopfield,
                implementation=name,
                precision=precision,
                process_group=layout.group,
            ).backward()
            float(torch.cat([rows.grad for rows in (x, y) if rows.grad is not None]).sum())  # waits for the device
        seconds.append(time.perf_counter() - start)
    slowest = largest_over_processes(torch.tensor(seconds, device=device), layout).tolist()
    report = ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in zip(names, slowest, strict=True))
    return LossImplementation(names[slowest.index(min(slowest))], f"measured: {report}")
