"""The loss over several processes: real processes, gloo, DDP, uneven batches, against one process's joint batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from margins import close
from torch.nn.functional import normalize

from cloob_cli.core.loss import clip_hopfield_loss, clip_loss, cloob_loss, infoloob_loss

pytestmark = pytest.mark.numeric

FLOAT64 = "docs/loss.md, Exactness: 1e-9 in float64"
WORKER = Path(__file__).parents[1] / "helpers" / "loss_process.py"
PAIRS, WIDTH, MOST = 23, 6, 4
CHUNK = 100  # the largest piece of scores, as the worker sets it
ROWS = {1: [23], 2: [12, 11], 3: [8, 8, 7], 4: [9, 9, 0, 5]}


@pytest.fixture(scope="module")
def batch() -> dict:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "pixels": random(PAIRS, 10),
        "tokens": random(PAIRS, 10),
        "caption_ids": torch.randint(0, 9, (PAIRS,), generator=generator),
        "image": random(10, WIDTH),
        "text": random(10, WIDTH),
        "logit_scale": torch.tensor(3.0, dtype=torch.float64),
        "rows": ROWS,
    }


@pytest.fixture(scope="module")
def results(batch, tmp_path_factory) -> list[dict]:
    """The results of each of four processes, as groups of one, two, three and four of them."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(batch, folder / "batch.pt")
    command = [sys.executable, str(WORKER), str(folder), str(MOST)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(MOST)]


def expected(batch: dict, objective: str, scale_hopfield: float, masked: bool) -> tuple[torch.Tensor, dict]:
    weights = {name: batch[name].clone().requires_grad_() for name in ("image", "text", "logit_scale")}
    x, y = normalize(batch["pixels"] @ weights["image"]), normalize(batch["tokens"] @ weights["text"])
    tau, ids = weights["logit_scale"].exp(), batch["caption_ids"] if masked else None
    if objective in ("cloob", "clip_hopfield"):
        loss = (cloob_loss if objective == "cloob" else clip_hopfield_loss)(x, y, tau, scale_hopfield, ids)
    else:
        loss = (infoloob_loss if objective == "infoloob" else clip_loss)(x, y, tau, ids)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in weights.items()}


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("implementation", ["definition", "tiled"])
@pytest.mark.parametrize(
    ("objective", "scale_hopfield", "masked"),
    [
        ("cloob", 8.0, False),
        ("cloob", 8.0, True),
        ("cloob", 400.0, False),  # row maxima are subtracted from such scores
        ("infoloob", 8.0, False),
        ("infoloob", 8.0, True),
        ("clip", 8.0, False),
        ("clip", 8.0, True),
        ("clip_hopfield", 8.0, False),
        ("clip_hopfield", 8.0, True),
    ],
)
def test_loss_and_averaged_gradients_equal_one_process(
    batch, results, processes, objective, scale_hopfield, implementation, masked
):
    loss, gradients = expected(batch, objective, scale_hopfield, masked)
    for rank in range(processes):
        found = results[rank][(processes, objective, scale_hopfield, implementation, masked)]
        close(found["loss"], loss, FLOAT64, atol=1e-9)
        for name, gradient in gradients.items():
            close(found["gradients"][name], gradient, FLOAT64, atol=1e-9)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_cached_gradients_under_ddp_equal_one_process(batch, results, processes):
    loss, gradients = expected(batch, "cloob", 8.0, masked=False)
    for rank in range(processes):
        found = results[rank][(processes, "cached")]
        close(found["loss"], loss, FLOAT64, atol=1e-9)
        for name, gradient in gradients.items():
            close(found["gradients"][name], gradient, FLOAT64, atol=1e-9)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_bytes_received_are_those_of_the_documentation(results, processes):
    number = torch.finfo(torch.float64).bits // 8
    counts = ROWS[processes]
    for rank in range(processes):
        others = PAIRS - counts[rank]  # rows that come by
        added = PAIRS - counts[rank - 1]  # rows whose sums come by: all but those that start here
        vectors = (processes - 1) * counts[rank]  # what others have for this process's rows, a number each
        layout = 5 * 8 * (processes - 1)  # five facts
        # Embeddings five times, partners four times and the gradient of one pattern matrix, with one or two numbers
        # beside each row; five matrices of sums.
        cloob = results[rank][(processes, "cloob", 8.0, "tiled", False)]["received"]
        assert cloob == number * (others * (10 * WIDTH + 15) + added * 5 * WIDTH + 2 * vectors) + layout
        masked = results[rank][(processes, "cloob", 8.0, "tiled", True)]["received"]
        assert masked - cloob == 8 * (processes - 1) * max(counts)  # caption ids; pieces are as long as the longest
        both = results[rank][(processes, "infoloob", 8.0, "tiled", False)]["received"]
        assert both == number * (others * (2 * WIDTH + 3) + added * WIDTH + 2 * vectors) + layout


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize(
    ("objective", "scale"), [("cloob", 8.0), ("cloob", 400.0), ("infoloob", 8.0), ("clip", 8.0), ("clip_hopfield", 8.0)]
)
def test_no_process_ever_holds_a_joint_matrix(results, processes, objective, scale):
    """The largest tensor is a process's own rows or a chunk of scores, never N x D."""
    for rank in range(processes):
        largest = results[rank][(processes, objective, scale, "tiled", False)]["largest"]
        assert largest <= max(CHUNK, max(ROWS[processes]) * WIDTH) < PAIRS * WIDTH


def test_a_process_without_rows_need_not_ask_for_gradients(batch, results):
    x, y = (normalize(batch[rows] @ batch[name]) for rows, name in (("pixels", "image"), ("tokens", "text")))
    x.requires_grad_()
    loss = cloob_loss(x, y, 30.0, 8.0)
    loss.backward()
    start = 0
    for rank, count in enumerate(ROWS[4]):
        found = results[rank][(4, "without rows")]
        close(found["loss"], loss.detach(), FLOAT64, atol=1e-9)
        if count:
            close(found["gradient"], 4 * x.grad[start : start + count], FLOAT64, atol=1e-9)
        start += count


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_all_processes_refuse_different_widths(results, processes):
    for rank in range(processes):
        assert results[rank][(processes, "widths")] == "embeddings of different widths on different processes: [5, 6]"


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_all_processes_refuse_what_is_not_finite_on_one(results, processes):
    for rank in range(processes):
        assert results[rank][(processes, "broken")] == "the embeddings hold values that are not finite"


@pytest.mark.slow
def test_memory_of_a_process_falls_as_their_number_grows():
    """Peak resident memory above a process's inputs: that of its own rows, whatever the others hold."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_loss.py"
    options = ["--implementations", "tiled fp32", "--repeats", "0", "--error-up-to", "0", "--device", "cpu"]
    memory = {}
    for pairs, processes in ((8192, 1), (8192, 4), (4096, 2)):
        which = ["--sizes", str(pairs), "--processes", str(processes)]
        said = subprocess.run([sys.executable, str(script), *options, *which], capture_output=True, text=True).stdout
        memory[pairs, processes] = float(said.splitlines()[-1].split()[-3])
    assert memory[8192, 4] < memory[8192, 1] / 2
    assert memory[8192, 4] < 1.2 * memory[4096, 2]
