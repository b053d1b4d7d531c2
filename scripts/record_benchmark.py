"""Measure a few things that should not become slower, and add them as a dated row to docs/benchmarks.md.

python scripts/record_benchmark.py              measures, about half a minute, and adds the row
python scripts/record_benchmark.py --dry-run    prints the row only

Processor time of one thread on the CPU, the least of several rounds, so that other programs on the machine disturb
little. `tests/benchmarks/` measures each of these things in more detail.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import normalize

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BATCH = 8


def measurements() -> dict[str, float]:
    """Milliseconds of processor time by the names of the table's columns."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]
    from inference import cpu_seconds, photo

    from cloob_cli.core.loss import contrastive_loss
    from cloob_cli.core.model import build
    from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
    from cloob_cli.data.decoding_memory import MemoryBudget
    from cloob_cli.data.preprocess import Preprocess, read_crop
    from cloob_cli.inference.encoding import encode_images, prepare_for_inference

    jpeg = photo(4000, 3000)
    preprocess, budget = Preprocess(224), MemoryBudget(10**9)
    model = build(ModelConfig.model_validate(ARCHITECTURES["RN50-quickgelu"]), seed=0).eval().requires_grad_(False)
    model = prepare_for_inference(model)
    pixels = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 512, generator=generator)
    y = x + torch.randn(x.shape, generator=generator)
    x, y = (normalize(rows, dim=1).requires_grad_() for rows in (x, y))

    def loss(implementation: str) -> Callable[[], None]:
        return lambda: contrastive_loss(x, y, "cloob", inv_tau=30.0, implementation=implementation).backward()

    work = {
        "loss, definition": loss("definition"),
        "loss, tiled": loss("tiled"),
        "JPEG, in full": lambda: read_crop(jpeg, preprocess, budget, exact=True),
        "JPEG, fast": lambda: read_crop(jpeg, preprocess, budget),
        "RN50, an image": lambda: encode_images(model, pixels),
    }
    best = {name: 1000 * seconds for name, seconds in cpu_seconds(work).items()}
    best["RN50, an image"] /= BATCH
    return best


def with_row(page: str, row: dict[str, str]) -> str:
    """The page with one more row at the end of its table; the table's columns say which values the row must have."""
    lines = page.rstrip("\n").split("\n")
    last = max(index for index, line in enumerate(lines) if line.startswith("|"))
    first = last
    while lines[first - 1].startswith("|"):
        first -= 1
    columns = [cell.strip() for cell in lines[first].strip("|").split("|")]
    if columns != list(row):
        raise SystemExit(f"{PAGE.name} has the columns {columns}, and {list(row)} were measured")
    lines.insert(last + 1, f"| {' | '.join(row.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "processor": processor(),
        "torch": torch.__version__.split("+")[0],
    } | {name: f"{value:.0f}" for name, value in measurements().items()}
    print(f"| {' | '.join(row)} |\n| {' | '.join(row.values())} |")
    if "--dry-run" not in sys.argv[1:]:
        PAGE.write_text(with_row(PAGE.read_text(encoding="utf-8"), row), encoding="utf-8")


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
