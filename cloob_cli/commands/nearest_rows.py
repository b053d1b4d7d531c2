"""The rows nearest to a query: by comparing all of them, or by an approximate index where there are many."""

from __future__ import annotations

import hashlib
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console
from cloob_cli.commands.index_run import held_lock
from cloob_cli.path_text import path_text
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    import numpy as np

    from cloob_cli.core.model import CloobModel
    from cloob_cli.inference.index.row_parts import RowParts
    from cloob_cli.inference.search.approximate import ApproximateIndex
    from cloob_cli.inference.search.nearest import Hit

_MANY = 200_000  # rows; so many are compared in some 0.1 s
_MOST = 100  # results: recall is measured for the first few, and says little of more than that
_BUILD_MINUTES = 12.7 / 512_000_000  # an element, by the clock on two cores that are busy (docs/search.md)
_SAMPLES = 32  # sample queries of each kind, texts and rows
_WORDS = (
    "dog cat bird horse fish flower tree forest mountain beach river snow city street house room kitchen food fruit "
    "car train boat airplane bicycle man woman child people portrait sport text map"
)


def find_nearest(
    embeddings: Path,
    rows: np.ndarray | RowParts,
    query: np.ndarray,
    model: CloobModel,
    top: int,
    min_score: float | None,
    *,
    compare_all: bool,
    as_it_is: bool,
) -> list[Hit]:
    """The rows [N, D] of the file `embeddings` that are nearest to a query [D], best first.

    Args:
        rows: of several files all are compared.
        compare_all: compare all rows, however many they are.
        as_it_is: use an approximate index that is there, and build none.
    """
    import numpy as np

    from cloob_cli.inference.search.nearest import nearest

    if not compare_all and isinstance(rows, np.ndarray) and len(rows) > _MANY and top <= _MOST:
        index = _index(embeddings, rows, model, as_it_is)
        if index:
            try:
                hits = index.nearest(rows, query, top, min_score)
            except Exception as problem:  # whatever LanceDB says of files that another run replaces, say
                _tell_failure(problem)
            else:
                console.info(_description(index))
                return hits
    return nearest(rows, query, top, min_score)


def approximate_folder(embeddings: Path) -> Path:
    """The folder of the approximate index: beside the embeddings, or below CLOOB_HOME where that cannot be written."""
    from cloob_cli.registry import paths

    name = f".{embeddings.name}.cloob-search"
    if os.access(embeddings.parent, os.W_OK | os.X_OK):
        return embeddings.with_name(name)
    key = hashlib.sha256(os.fsencode(embeddings.resolve())).hexdigest()[:16]
    return paths.home() / "indexes" / key / name


def _index(embeddings: Path, rows: np.ndarray, model: CloobModel, as_it_is: bool) -> ApproximateIndex | None:
    from cloob_cli.inference.lance_tables import has_lancedb

    if not has_lancedb():
        console.info(f"all {len(rows):,} rows are compared; pip install 'cloob[search]' makes that faster")
        return None
    from cloob_cli.inference.search import approximate

    folder = approximate_folder(embeddings)
    try:
        with held_lock(f"search {path_text(folder.resolve())}", f"the index of {embeddings}"):
            index = approximate.open_fitting(folder, embeddings, rows)
            if index is None and not as_it_is:
                minutes = math.ceil(rows.size * _BUILD_MINUTES)
                console.info(
                    f"building a search index of {len(rows):,} rows, once, in up to some "
                    f"{counted(minutes, 'minute')}; --compare-all searches without it"
                )
                started = time.monotonic()
                samples = _sample_queries(rows, model)
                index = approximate.build(folder, embeddings, rows, samples, lambda step: console.info(f"step {step}"))
                console.info(f"built in {time.monotonic() - started:.0f} s")
    except Exception as problem:  # a full disk, a damaged table: LanceDB has no class of errors for them
        _tell_failure(problem)
        return None
    if index and index.effort is None:
        console.info(f"all rows are compared: the index finds only {index.recall:.1%} of the 10 nearest")
        return None
    return index


def _sample_queries(rows: np.ndarray, model: CloobModel) -> np.ndarray:
    """Texts, and rows of the array itself, as float32 [Q, D]."""
    import numpy as np

    from cloob_cli.inference.encoding import encode_texts

    texts = encode_texts(model, [f"a picture of a {word}" for word in _WORDS.split()]).numpy()
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), _SAMPLES, replace=False))
    return np.concatenate([texts, rows[chosen]]).astype(np.float32)


def _description(index: ApproximateIndex) -> str:
    share = f"{index.recall:.1%} of the 10 nearest"
    return f"approximate search: finds {share} (of sample queries); --compare-all compares all rows"


def _tell_failure(problem: Exception) -> None:
    from cloob_cli.inference.lance_tables import lance_reason

    console.warn(f"all rows are compared: the search index cannot be used ({lance_reason(problem)})")
