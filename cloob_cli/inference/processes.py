"""The processes of one `cloob embed`, as a launcher starts them: joined over gloo while they divide the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from cloob_cli.errors import CloobError
from cloob_cli.process_exchange import is_lost_process

# The others wait while the first one looks for images, and it for the slowest; a process that ends is noticed at once.
_TIMEOUT = timedelta(days=1)


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of the run, for the body.

    Raises:
        CloobError: one of them is lost, meanwhile too.
    """
    import torch.distributed as distributed

    try:
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
        try:
            yield
        finally:
            distributed.destroy_process_group()
    except RuntimeError as problem:
        if not is_lost_process(problem):
            raise
        text = "another process of this run was lost, so nothing was written"
        raise CloobError(text, "batches that are finished are kept: the same command goes on from there") from problem
