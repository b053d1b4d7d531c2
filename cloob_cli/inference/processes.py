"""Exchange of objects between the processes of one run, as a launcher starts them, over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from cloob_cli.errors import CloobError

Value = TypeVar("Value")

# The others wait while the first one looks for images, and it for the slowest; a process that ends is noticed at once.
_TIMEOUT = timedelta(days=1)


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of the run, for the body.

    Raises:
        CloobError: one of them is lost.
    """
    import torch.distributed as distributed

    with _told():
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def told(value: Value | None = None) -> Value:
    """The value of process 0, in every process.

    Raises:
        CloobError: a process is lost.
    """
    import torch.distributed as distributed

    box: list[Any] = [value]
    with _told():
        distributed.broadcast_object_list(box, src=0)
    result: Value = box[0]
    return result


def gathered(value: Value) -> list[Value]:
    """Each process's value, in the order of their numbers, in every process.

    Raises:
        CloobError: a process is lost.
    """
    import torch.distributed as distributed

    values: list[Any] = [None] * distributed.get_world_size()
    with _told():
        distributed.all_gather_object(values, value)
    return values


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:  # gloo's "connection closed by peer", or a timeout
        text = "another process of this run was lost, so nothing was written"
        raise CloobError(text, "batches that are finished are kept: the same command goes on from there") from problem
