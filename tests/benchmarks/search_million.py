"""Measure searches of a million vectors: `python tests/benchmarks/search_million.py --command`.

Prints for each kind of synthetic unit vectors what building the approximate index takes, then time and recall@10 a
query, ways in turns so that a disturbance meets all of them: all rows compared by NumPy (exact), a first pass over a
copy in int8 with the best compared exactly, and the approximate index that `cloob search` uses (needs the extra
`search`). With `--command` at last the whole command with and without `--compare-all`, with a model of random weights.

Of clustered vectors each is one of 2,000 centers with noise of 0.7 times its length, queries too. Uniform ones have no
neighbors worth the name: all cosines are small, and no index is of use that looks at a part of the rows only.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cloob_cli.inference.search import approximate
from cloob_cli.inference.search.nearest import nearest, nearest_of_each

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

DIM, TOP, BLOCK = 512, 10, 20_000
CENTERS, NOISE = 2000, 0.7
FIRST = 200  # rows that the pass in int8 leaves
SCALE = 127 / 0.25  # elements of unit vectors of 512 are seldom above 0.25


class Vectors:
    """Random unit vectors of one kind."""

    def __init__(self, kind: str) -> None:
        self.generator = np.random.default_rng(0)
        self.centers = self._uniform(CENTERS) if kind == "clustered" else None

    def draw(self, count: int) -> np.ndarray:
        """`count` unit vectors, float32."""
        if self.centers is None:
            return self._uniform(count)
        chosen = self.centers[self.generator.integers(0, CENTERS, count)]
        return unit(chosen + NOISE * self._uniform(count))

    def _uniform(self, count: int) -> np.ndarray:
        return unit(self.generator.standard_normal((count, DIM), dtype=np.float32))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def int8_search(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A search with a first pass in int8, whose copy of the rows is held in memory."""
    small = torch.empty(rows.shape, dtype=torch.int8)
    for start in range(0, len(rows), BLOCK):
        small[start : start + BLOCK] = torch.from_numpy(quantized(rows[start : start + BLOCK]))

    def search(query: np.ndarray) -> np.ndarray:
        found = torch._int_mm(small, torch.from_numpy(quantized(query))[:, None])[:, 0]
        first = np.sort(found.topk(FIRST).indices.numpy())
        return first[[hit.row for hit in nearest(rows[first], query, TOP)]]

    return search


def quantized(rows: np.ndarray) -> np.ndarray:
    return (rows * SCALE).round().clip(-127, 127).astype(np.int8)


def measure(ways: dict[str, Callable[[np.ndarray], np.ndarray]], queries: np.ndarray, exact: np.ndarray) -> None:
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    found = dict.fromkeys(ways, 0)
    for search in ways.values():  # opens files, starts threads
        search(queries[0])
    for query, expected in zip(queries, exact, strict=True):
        for name, search in ways.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            hits = search(query)
            wall[name].append(1000 * (time.perf_counter() - began))
            cpu[name].append(1000 * (time.process_time() - began_cpu))
            found[name] += len(np.intersect1d(hits, expected))
    for name in ways:
        median, most = np.median(wall[name]), np.quantile(wall[name], 0.9)
        share = found[name] / exact.size
        print(f"  {name:28} {median:6.1f} ms a query (90 %: {most:.1f}), {np.median(cpu[name]):6.1f} ms CPU, ", end="")
        print(f"recall@{TOP} {share:.3f}", flush=True)


def write_rows(path: Path, vectors: Vectors, count: int) -> np.ndarray:
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, DIM))
    for start in range(0, count, BLOCK):
        rows[start : start + BLOCK] = vectors.draw(min(BLOCK, count - start))
    rows.flush()
    del rows
    return np.load(path, mmap_mode="r")


def whole_command(folder: Path, count: int) -> None:
    """Time `cloob search emb.npy TEXT`, with the index there is and with --compare-all, in turns."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tiny_model import save_tiny_model

    from cloob_cli.checkpoint.folder import weights_sha256

    save_tiny_model(folder / "model", embed_dim=DIM)
    metadata = {"made_by": "cloob embed", "model": "tiny", "weights_sha256": weights_sha256(folder / "model")}
    names = pa.array([f"images/{number:07}.jpg" for number in range(count)])
    schema = pa.schema([pa.field("path", pa.string(), nullable=False)], metadata=metadata)
    pq.write_table(pa.table([names], schema=schema), folder / "emb.parquet")
    command = [sys.executable, "-m", "cloob_cli", "search", "emb.npy", "a cat", "-m", "model"]
    for _ in range(3):
        for options in ([], ["--compare-all"]):
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=600)
            took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            assert done.returncode == 0, done.stderr
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"  cloob search {' '.join(options):13} {took:5.1f} s, {cpu:5.1f} s CPU")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", default=["clustered", "uniform"])
    parser.add_argument("--command", action="store_true", help="time the whole command too")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as place:
            embeddings = Path(place) / "emb.npy"
            vectors = Vectors(kind)
            rows = write_rows(embeddings, vectors, options.rows)
            queries, samples = vectors.draw(options.queries), vectors.draw(64)
            began, began_cpu = time.perf_counter(), time.process_time()
            index = approximate.build(Path(place) / ".emb.npy.cloob-search", embeddings, rows, samples)
            took, cpu = time.perf_counter() - began, time.process_time() - began_cpu
            print(f"{options.rows:,} {kind} vectors: index built in {took:.0f} s ({cpu:.0f} s CPU),", end=" ")
            print(f"recall@{TOP} {index.recall:.3f} on samples with {index.effort}", flush=True)
            ways = {
                "all rows, NumPy": lambda query, rows=rows: np.array([hit.row for hit in nearest(rows, query, TOP)]),
                "int8, then exact": int8_search(rows),
                "approximate index (LanceDB)": lambda query, rows=rows, index=index: np.array(
                    [hit.row for hit in index.nearest(rows, query, TOP)]
                ),
            }
            measure(ways, queries, nearest_of_each(rows, queries, TOP))
            if options.command:
                whole_command(Path(place), options.rows)
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of memory")


if __name__ == "__main__":
    main()
