"""An approximate index of rows, for collections where comparing all of them takes long.

LanceDB keeps the rows in partitions, as codes of four bits a dimension (RaBitQ, its IVF_RQ). A search takes the best
candidates of some partitions by their codes, and compares these exactly. How many that must be is measured when the
index is built: against all rows, for sample queries. The index is of no use for other rows than those that it was
built from, so it keeps a digest of each; where some changed, it goes on with the others, and the new ones are compared
exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from cloob_cli.atomic_files import replacing, replacing_folder
from cloob_cli.inference.index.file_stamp import Stamp, stamped
from cloob_cli.inference.lance_tables import VECTOR, connect, vector_column, vector_field, write_table
from cloob_cli.inference.search.nearest import Hit, nearest, nearest_of_each

if TYPE_CHECKING:
    import pyarrow

_FORMAT = 1
_TABLE = "rows"
_BLOCK = 8192  # rows that are copied at a time
_PARTITION = 4096  # rows a partition; smaller ones make training slow, larger ones a search
_TRAINED_ON = 64  # rows a partition that its center is found from
_BITS = 4  # a dimension; of one, uniform vectors need a hundred times the candidates
_ROUNDS = 10  # of k-means: more of them do not make recall better
_RECALLED = 10  # recall is that of so many nearest rows
_WANTED = 0.98  # recall that is aimed at, and the least one for which the index is used: samples are not all queries
_LEAST = 0.95
_CANDIDATES = (100, 500, 2000, 5000)
_SHARES = (1 / 16, 1 / 4, 1.0)  # of the partitions
_ODD = np.uint64(0x9E3779B97F4A7C15)
_STALE = 0.1  # fraction of new rows, or of rows that are gone, from which on an index is built anew


class Effort(NamedTuple):
    """The work of a search: so many partitions that it looks at, and candidates that it compares exactly."""

    partitions: int
    candidates: int


@dataclass
class ApproximateIndex:
    """An index that fits the rows of an array.

    Args:
        row_ids: sorted int64 [M], by which the table knows its rows.
        numbers: int64 [M], the number in the array of each row of the table; -1: it is gone.
        fresh: int64, the numbers of the rows that the table does not have.
        effort: None where no effort reaches the least recall.
        recall: the fraction of the 10 nearest rows of sample queries that was found with `effort`, or at best.
    """

    table: Any
    row_ids: np.ndarray
    numbers: np.ndarray
    fresh: np.ndarray
    effort: Effort | None
    recall: float

    def nearest(self, rows: np.ndarray, query: np.ndarray, top: int, min_score: float | None = None) -> list[Hit]:
        """The `top` rows with the largest cosine among those that are found, as `nearest` has them of all."""
        assert self.effort is not None
        found = self._candidates(query, self.effort)
        hits = nearest(rows[found], query, top, min_score)
        return [Hit(int(found[hit.row]), hit.score) for hit in hits]

    def _candidates(self, query: np.ndarray, effort: Effort) -> np.ndarray:
        """Sorted numbers of rows that may be near."""
        search = self.table.search(_padded(query[None])[0], vector_column_name=VECTOR).distance_type("dot")
        search = search.nprobes(effort.partitions).limit(effort.candidates).with_row_id(True)
        ids = search.select(["_rowid", "_distance"]).to_arrow().column("_rowid").to_numpy()
        numbers = self.numbers[np.searchsorted(self.row_ids, ids.astype(np.int64))]
        return np.union1d(numbers[numbers >= 0], self.fresh)


def build(
    folder: Path,
    embeddings: Path,
    rows: np.ndarray,
    samples: np.ndarray,
    on_step: Callable[[str], None] = lambda step: None,
) -> ApproximateIndex:
    """Build an index in `folder`, which is replaced, of the rows [N, D] of the file `embeddings`.

    Args:
        samples: unit-norm float32 [Q, D], queries for which recall is measured.
        on_step: called when a step begins, with its number and what is done.
    """
    from lancedb.index import IvfRq

    with replacing_folder(folder) as temporary:
        on_step("1 of 3, rows are copied")
        stamp, digests = stamped(embeddings, lambda: _digests(rows))
        schema, batches = _batches(rows)
        table = write_table(temporary, _TABLE, schema, batches)
        partitions = max(1, len(rows) // _PARTITION)
        config = IvfRq(
            distance_type="dot",
            num_partitions=partitions,
            sample_rate=_TRAINED_ON,
            max_iterations=_ROUNDS,
            num_bits=_BITS,
        )
        on_step("2 of 3, partitions and codes are computed, which takes longest")
        table.create_index(VECTOR, config=config)
        on_step("3 of 3, recall is measured")
        read = table.search().select(["row"]).with_row_id(True).to_arrow()
        ids, numbers = (read.column(name).to_numpy().astype(np.int64) for name in ("_rowid", "row"))
        order = np.argsort(ids)
        index = ApproximateIndex(table, ids[order], numbers[order], np.empty(0, np.int64), None, 0.0)
        index.effort, index.recall = measure(index, rows, samples, partitions)
        np.savez(temporary / "built.npz", row_ids=index.row_ids, digests=digests[index.numbers])
        _write_state(temporary, stamp, index)
    index.table = connect(folder).open_table(_TABLE)
    return index


def open_fitting(folder: Path, embeddings: Path, rows: np.ndarray) -> ApproximateIndex | None:
    """Open the index in `folder` where it fits the rows of the file `embeddings`; None where one is to be built.

    It fits at once where the file is the one that it was used with last, by size and time of change, or else by its
    contents. Otherwise rows are compared one by one.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != _FORMAT:
            return None
        effort, known = state["effort"] and Effort(*state["effort"]), Stamp(*state["stamp"])
        with np.load(folder / f"numbers-{known.sha256[:16]}.npz", allow_pickle=False) as stored:
            numbers, fresh = stored["numbers"], stored["fresh"]
        with np.load(folder / "built.npz", allow_pickle=False) as built:
            row_ids, digests = built["row_ids"], built["digests"]
        index = ApproximateIndex(None, row_ids, numbers, fresh, effort, float(state["recall"]))
    # There is none, or a damaged one, or one of another version.
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile):
        return None
    status = embeddings.stat()
    if (status.st_size, status.st_mtime_ns) != (known.size, known.mtime_ns):
        stamp, _ = stamped(embeddings, lambda: None)
        if stamp.sha256 != known.sha256:
            index.numbers, index.fresh = _match(digests, _digests(rows))
            gone = int((index.numbers < 0).sum())
            if max(gone, len(index.fresh)) > _STALE * len(rows):
                return None
        _write_state(folder, stamp, index)
    if effort is not None:
        index.table = connect(folder).open_table(_TABLE)
    return index


def measure(
    index: ApproximateIndex, rows: np.ndarray, samples: np.ndarray, partitions: int
) -> tuple[Effort | None, float]:
    """The least effort that finds enough of the nearest rows of the samples, and the recall that it reaches."""
    exact = nearest_of_each(rows, samples, _RECALLED)

    def recall(effort: Effort) -> float:
        found = 0
        for query, expected in zip(samples, exact, strict=True):
            candidates = index._candidates(query, effort)
            found += np.isin(expected, candidates).sum()
        return float(found / exact.size)

    best = Effort(partitions, _CANDIDATES[0]), -1.0
    for candidates in _CANDIDATES:
        effort = Effort(partitions, candidates)
        best = max(best, (effort, recall(effort)), key=lambda one: one[1])
        if best[1] >= _WANTED or candidates >= len(rows):
            break
    (_, candidates), reached = best
    if reached < _LEAST:
        return None, reached
    for share in _SHARES[:-1]:
        effort = Effort(max(1, round(share * partitions)), candidates)
        if (found := recall(effort)) >= min(_WANTED, reached):
            return effort, found
    return best


def _batches(rows: np.ndarray) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    import pyarrow as pa

    width = _padded(rows[:1]).shape[1]
    # Codes are made from these, and exact cosines from the file of embeddings: half the numbers do.
    schema = pa.schema([pa.field("row", pa.int32()), vector_field(width, np.dtype(np.float16))])

    def parts() -> Iterator[pyarrow.RecordBatch]:
        for start in range(0, len(rows), _BLOCK):
            block = _padded(np.asarray(rows[start : start + _BLOCK], np.float16))
            numbers = pa.array(np.arange(start, start + len(block), dtype=np.int32))
            yield pa.record_batch([numbers, vector_column(block)], schema=schema)

    return schema, parts()


def _padded(rows: np.ndarray) -> np.ndarray:
    """Rows with zeros behind them, up to a multiple of 8, which the index asks for."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))


def _digests(rows: np.ndarray) -> np.ndarray:
    """A digest of each row's bytes, uint64 [N]."""
    found = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(found), np.uint64)


def _match(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each old digest the number of the new row that it belongs to, or -1; and the new rows that have none."""
    (old_order, old_keys), (new_order, new_keys) = _counted(old), _counted(new)
    _, at_old, at_new = np.intersect1d(old_keys, new_keys, assume_unique=True, return_indices=True)
    numbers = np.full(len(old), -1)
    numbers[old_order[at_old]] = new_order[at_new]
    fresh = np.delete(new_order, at_new)
    return numbers, np.sort(fresh)


def _counted(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts digests, and for each a key in which the equal ones before it are counted too."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    count = np.arange(len(ordered)) - np.repeat(begins, np.diff(np.r_[begins, len(ordered)]))
    return order, ordered + count.astype(np.uint64) * _ODD  # modulo 2^64


def _write_state(folder: Path, stamp: Stamp, index: ApproximateIndex) -> None:
    """Write which rows the index is about; the state is written last, and names the numbers that belong to it."""
    numbers = folder / f"numbers-{stamp.sha256[:16]}.npz"
    with replacing(numbers) as temporary, temporary.open("wb") as stream:
        np.savez(stream, numbers=index.numbers, fresh=index.fresh)
    state = {"format": _FORMAT, "stamp": stamp, "effort": index.effort, "recall": index.recall}
    with replacing(folder / "state.json") as temporary:
        temporary.write_text(json.dumps(state), encoding="utf-8")
    for other in folder.glob("numbers-*.npz"):
        if other != numbers:
            other.unlink(missing_ok=True)
