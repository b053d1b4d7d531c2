"""Data sets for evaluation on the Hugging Face Hub, in CLIP_benchmark's layout or as parquet files."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from cloob_cli.errors import DataError
from cloob_cli.registry import hub
from cloob_cli.registry.events import Report, unreported

_DESCRIPTIONS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")


def hub_data_set(text: str, splits: Sequence[str], report: Report = unreported) -> Path:
    """Bring the named splits of `hf://ORG/REPO[@REVISION]`, a data set, into the Hub's own cache.

    Returns:
        The folder of that revision in the cache.

    Raises:
        UsageError: not a reference.
        DownloadError: it is not there, or not reachable and not cached.
        DataError: it holds nothing of these splits.
    """
    reference = hub.parse_reference(text)
    patterns = [*_DESCRIPTIONS, *(pattern for split in splits for pattern in (f"{split}/*", f"*{split}-*.parquet"))]
    if hub.offline_by_environment():
        return hub.cached(reference, patterns, "dataset")
    found = hub.listing(reference, "dataset")
    names = [file.name for file in found.files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]
    if not any(name.endswith((".tar", ".parquet")) for name in names):
        raise DataError(
            f"{reference} has no tar or parquet file of the split {' or '.join(splits)}",
            "known layouts: test/0.tar with classnames.txt, as CLIP_benchmark has it; data/test-*.parquet",
        )
    return hub.snapshot(found, names, report)
