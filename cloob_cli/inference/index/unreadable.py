"""Images that an earlier run has listed as unreadable: tried again before a model is opened for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli.errors import Failure
from cloob_cli.path_text import path_text

if TYPE_CHECKING:
    from cloob_cli.core.model_config import ModelConfig


def listed_failures(listing: Path) -> list[Failure]:
    """The inputs that the last run has skipped; none where there is no such list, or one that cannot be read."""
    try:
        rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
        return [Failure(row["path"], row["reason"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def still_unreadable(
    new: Sequence[Path | Failure],
    listing: Path,
    config: ModelConfig,
    *,
    workers: int | None,
    exact: bool,
    memory_budget: int | None,
) -> list[Failure] | None:
    """The failures of all images of `new`, in their order; None where there is work for the model of `config`.

    That is so where one of them can be read, or was not listed by the last run, which may mean that it can be.
    """
    listed = {failure.name for failure in listed_failures(listing)}
    if not {path_text(one) if isinstance(one, Path) else one.name for one in new} <= listed:
        return None
    from cloob_cli.data.preprocess import Preprocess
    from cloob_cli.inference.image_batches import image_batches

    batches = image_batches(
        new,
        Preprocess(config.vision.image_size, config.preprocess),
        batch_size=1,
        workers=workers,
        exact=exact,
        memory_budget=memory_budget,
        with_stamps=True,
    )
    failures: list[Failure] = []
    with closing(batches):
        for batch in batches:
            if batch.paths:
                return None
            failures += batch.failures
    return failures
