"""Time, memory and error of the losses, side by side: the definition, InfoNCE and the tiled implementations.

    python tests/benchmarks/bench_loss.py --sizes 2048 8192
    python tests/benchmarks/bench_loss.py --sizes 8192 --implementations "tiled fp32" --processes 1 2 4

Every row is a process of its own, or several that share the batch of N pairs (gloo on CPUs, NCCL on a GPU each); of
several the largest figures count. A forward and backward pass, then `--repeats` more, of which the fastest counts. On
a CPU the time is processor time, of all threads together, so that other programs do not count. Memory is what a pass
needs above a process's embeddings and their gradients: the allocator's peak on CUDA, the resident set's on Linux, where
the C library is told to give freed memory back, so that it counts no more. The error is the gradient's distance from
that of "tiled" in float64 (which the tests hold to 1e-9 of the definition), relative to that gradient's length.
The bound is the time that the unavoidable products take at the rate of one N x D by D x N product, measured in the same
process: 52 N^2 D operations for CLOOB, 6 N^2 D for InfoNCE (docs/loss.md counts them), divided by the number of
processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.functional import normalize

from cloob_cli.core.loss import contrastive_loss

IMPLEMENTATIONS = {
    "definition": ("cloob", "definition", "fp32"),
    "InfoNCE": ("clip", "definition", "fp32"),
    "tiled fp32": ("cloob", "tiled", "fp32"),
    "tiled bf16": ("cloob", "tiled", "bf16"),
    "triton fp32": ("cloob", "triton", "fp32"),
    "triton tf32": ("cloob", "triton", "tf32"),
    "triton bf16": ("cloob", "triton", "bf16"),
}
OPERATIONS = {"cloob": 52, "clip": 6}  # times N^2 D


def embeddings(n: int, d: int, device: str, rank: int, processes: int) -> tuple[Tensor, Tensor]:
    """This process's part of n pairs."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(n * (rank + 1) // processes - n * rank // processes, d, generator=generator)
    y = x + torch.randn(x.shape, generator=generator)
    x, y = (normalize(rows, dim=1).to(device).requires_grad_() for rows in (x, y))
    return x, y


def measure(
    n: int, d: int, name: str, device: str, repeats: int, error_up_to: int, rank: int, processes: int, meeting: str
) -> dict[str, float]:
    objective, implementation, precision = IMPLEMENTATIONS[name]
    if processes > 1:
        if device == "cuda":
            torch.cuda.set_device(rank)
        backend = "nccl" if device == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=processes)
    group = distributed.group.WORLD if processes > 1 else None

    def step(x: Tensor, y: Tensor, implementation: str = implementation) -> None:
        x.grad = y.grad = None
        contrastive_loss(
            x, y, objective, implementation=implementation, precision=precision, process_group=group
        ).backward()

    step(*embeddings(min(n, 300), d, device, rank, processes))  # libraries and kernels are loaded
    x, y = embeddings(n, d, device, rank, processes)
    before = reset_peak(device)
    times = [timed(lambda: step(x, y), device)]
    memory = peak(device) - before - x.nbytes - y.nbytes
    seconds = min(times + [timed(lambda: step(x, y), device) for _ in range(repeats)])
    result = {"seconds": seconds, "memory": memory}
    operations = OPERATIONS[objective] * n * n * d / processes
    result["fraction"] = operations / product_rate(x, y, precision, device) / seconds
    if n <= error_up_to:
        exact = [rows.detach().double().requires_grad_() for rows in (x, y)]
        step(*exact, implementation="tiled")
        found, expected = (torch.cat([rows.grad.double() for rows in pair]) for pair in ((x, y), exact))
        result["error"] = float((found - expected).norm() / expected.norm())
    if group is not None:
        distributed.destroy_process_group()
    return result


def timed(work: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(x: Tensor, y: Tensor, precision: str, device: str) -> float:
    """Operations a second of x y^T for up to 8192 rows, with CUDA's matrix units where `precision` uses them."""
    left, right = x.detach()[:8192], y.detach()[:8192].T
    if device == "cuda" and precision == "bf16":
        left, right = left.bfloat16(), right.bfloat16()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    timed(lambda: left @ right, device)
    seconds = min(timed(lambda: left @ right, device) for _ in range(5))
    torch.set_float32_matmul_precision("highest")
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] / seconds


def reset_peak(device: str) -> int:
    """Forget the highest memory use so far; the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 8192, 32768, 131072] if cuda else [2048])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--error-up-to", type=int, default=8192, help="largest N for which the error is measured")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="numbers of processes to share a batch")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n, name, *place = json.loads(options.one)
        print(json.dumps(measure(n, options.width, name, options.device, options.repeats, options.error_up_to, *place)))
        return
    names = options.implementations or [
        name for name in IMPLEMENTATIONS if (options.device == "cuda") == ("triton" in name) or " " not in name
    ]
    threads = "" if options.device == "cuda" else f", {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {options.device}{threads}, D = {options.width}")
    print(f"{'N':>8}{'processes':>11}  {'implementation':<14}{'ms':>10}{'MiB':>10}{'error':>10}{'of bound':>10}")
    for n in options.sizes:
        for name in names:
            for processes in options.processes:
                print(f"{n:>8}{processes:>11}  {name:<14}{row(n, name, processes)}", flush=True)


def row(n: int, name: str, processes: int) -> str:
    with TemporaryDirectory() as folder:
        started = []
        for rank in range(processes):
            one = json.dumps([n, name, rank, processes, f"{folder}/meeting"])
            child = [sys.executable, __file__, *sys.argv[1:], "--one", one]
            started.append(
                subprocess.Popen(
                    child,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)},
                )
            )
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started):  # the others would wait for it
                for process in started:
                    process.kill()
            time.sleep(0.05)
        said = [process.communicate() for process in started]
    failed = [talk for process, (_, talk) in zip(started, said, strict=True) if process.returncode > 0]
    if failed:
        return failed[0].strip().splitlines()[-1][:70]
    if any(process.returncode for process in started):
        return "killed"
    found = [json.loads(output) for output, _ in said]
    error = f"{max(each['error'] for each in found):.1e}" if "error" in found[0] else "-"
    seconds, memory = (max(each[name] for each in found) for name in ("seconds", "memory"))
    fraction = min(each["fraction"] for each in found)
    return f"{1000 * seconds:>10.1f}{memory / 2**20:>10.1f}{error:>10}{fraction:>10.0%}"


if __name__ == "__main__":
    main()
