"""The loss over several processes: real processes, gloo, DDP, uneven batches, against one process's joint batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cloob_cli.core.loss import clip_loss, cloob_loss, infoloob_loss

WORKER = Path(__file__).parents[1] / "helpers" / "loss_process.py"
PAIRS, WIDTH, MOST = 23, 6, 4
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
    """What each of four processes found, as groups of one, two, three and four of them."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(batch, folder / "batch.pt")
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), str(rank), str(MOST)], stderr=subprocess.PIPE)
        for rank in range(MOST)
    ]
    try:
        for process in started:
            _, talk = process.communicate(timeout=300)
            assert process.returncode == 0, talk.decode()
    finally:
        for process in started:  # where one failed, the others wait for it
            process.kill()
            process.communicate()
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(MOST)]


def expected(batch: dict, objective: str, scale_hopfield: float, masked: bool) -> tuple[torch.Tensor, dict]:
    weights = {name: batch[name].clone().requires_grad_() for name in ("image", "text", "logit_scale")}
    x, y = normalize(batch["pixels"] @ weights["image"]), normalize(batch["tokens"] @ weights["text"])
    tau, ids = weights["logit_scale"].exp(), batch["caption_ids"] if masked else None
    if objective == "cloob":
        loss = cloob_loss(x, y, tau, scale_hopfield, ids)
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
        ("cloob", 400.0, False),  # row maxima are taken out of such scores
        ("infoloob", 8.0, False),
        ("infoloob", 8.0, True),
        ("clip", 8.0, False),
        ("clip", 8.0, True),
    ],
)
def test_loss_and_averaged_gradients_equal_one_process(
    batch, results, processes, objective, scale_hopfield, implementation, masked
):
    loss, gradients = expected(batch, objective, scale_hopfield, masked)
    for rank in range(processes):
        found = results[rank][(processes, objective, scale_hopfield, implementation, masked)]
        assert abs(found["loss"] - loss) < 1e-9
        for name, gradient in gradients.items():
            assert (found["gradients"][name] - gradient).abs().max() < 1e-9, name


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_cached_gradients_under_ddp_equal_one_process(batch, results, processes):
    loss, gradients = expected(batch, "cloob", 8.0, masked=False)
    for rank in range(processes):
        found = results[rank][(processes, "cached")]
        assert abs(found["loss"] - loss) < 1e-9
        for name, gradient in gradients.items():
            assert (found["gradients"][name] - gradient).abs().max() < 1e-9, name


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_bytes_received_are_those_of_the_documentation(results, processes):
    """Eight times N D numbers for each process with CLOOB, four with one score matrix; of these (W-1)/W from others."""
    number = torch.finfo(torch.float64).bits // 8
    counts = ROWS[processes]
    for rank in range(processes):
        gathered = processes * max(counts) * WIDTH * number  # pieces are as long as the longest
        summed = processes * counts[rank] * WIDTH * number
        layout = 8 * processes
        share = (processes - 1) / processes
        cloob = results[rank][(processes, "cloob", 8.0, "tiled", False)]["received"]
        assert cloob == pytest.approx(share * (4 * gathered + 4 * summed + layout))
        both = results[rank][(processes, "infoloob", 8.0, "tiled", False)]["received"]
        column_sums = processes * PAIRS * number
        assert both == pytest.approx(share * (2 * gathered + summed + column_sums + layout))
