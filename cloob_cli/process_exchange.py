"""Exchange of objects between the processes of one run, once they have joined; one that is alone keeps its own."""

from __future__ import annotations

from typing import Any, TypeVar

Value = TypeVar("Value")


def several() -> bool:
    """True where this process has joined others."""
    import torch.distributed as distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def told(value: Value | None = None) -> Value:
    """The value of process 0, in every process."""
    box: list[Any] = [value]
    if several():
        import torch.distributed as distributed

        distributed.broadcast_object_list(box, src=0)
    result: Value = box[0]
    return result


def gathered(value: Value) -> list[Value]:
    """Each process's value, in the order of their numbers, in every process."""
    if not several():
        return [value]
    import torch.distributed as distributed

    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def is_lost_process(problem: Exception) -> bool:
    """True for what torch.distributed raises where a process does not answer: classes of its own, or gloo's words."""
    return isinstance(problem, RuntimeError) and (
        type(problem).__name__.startswith("Dist") or "gloo/transport" in str(problem)
    )
