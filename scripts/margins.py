"""Measure how much of every tolerance in the tests is used on this machine: `python scripts/margins.py`.

Runs the tests with the marker `numeric` with each set of instructions that torch can be held to (plain, AVX2, the
machine's best; matrix products of MKL and oneDNN likewise), with one thread and with two, and prints a line a test: the
largest error as measured, its limit, and the one as a fraction of the other, largest last. Fails if a test does, or if
more than half of a limit is used. Options go to pytest: `python scripts/margins.py tests/core -k bfloat16`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 0.5
INSTRUCTIONS = {  # by the value of ATEN_CPU_CAPABILITY
    "default": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "native": {},
}


def run_tests(capability: str, threads: int, options: list[str]) -> tuple[int, dict[str, tuple[float, float, float]]]:
    """pytest's exit status, and by test what was used of the limit of which most was used: (fraction, error, limit)."""
    environment = {name: value for name, value in os.environ.items() if name not in _SET_HERE}
    environment |= INSTRUCTIONS[capability] | {"OMP_NUM_THREADS": str(threads)}
    if capability != "native":
        environment["ATEN_CPU_CAPABILITY"] = capability
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "margins.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "-p", "no:cacheprovider", *options]
        done = subprocess.run(
            command, cwd=ROOT, env=environment | {"CLOOB_MARGINS": str(record)}, capture_output=True, text=True
        )
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
        used: dict[str, tuple[float, float, float]] = {}
        for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else []:
            row = json.loads(line)
            error, limit = row["measured"], row["limit"]
            fraction = error / limit if limit else float(error > 0)
            used[row["test"]] = max(used.get(row["test"], (-1.0, 0.0, 0.0)), (fraction, error, limit))
    return done.returncode, used


_SET_HERE = {"ATEN_CPU_CAPABILITY"} | {name for setting in INSTRUCTIONS.values() for name in setting}


def main() -> int:
    most: dict[str, tuple[float, float, float, str]] = {}
    failed = False
    for capability in INSTRUCTIONS:
        for threads in (1, 2):
            where = f"{capability}/{threads}"
            status, used = run_tests(capability, threads, sys.argv[1:])
            above = sum(fraction > MOST for fraction, _, _ in used.values())
            print(f"{where}: {len(used)} tests, {above} above half of a limit", file=sys.stderr)
            failed |= status != 0 or above > 0
            for test, row in used.items():
                most[test] = max(most.get(test, (-1.0, 0.0, 0.0, "")), (*row, where))
    print(f"{'used':>6}  {'error':>9}  {'limit':>9}  {'where':9}  test")
    for test, (fraction, error, limit, where) in sorted(most.items(), key=lambda item: item[1]):
        print(f"{fraction:6.1%}  {error:9.2e}  {limit:9.2e}  {where:9}  {test}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
