"""What a checkpoint keeps of the data that it was trained on, and what a continuation says where they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloob_cli.data.fingerprint import changes, from_json, to_json
from cloob_cli.errors import UsageError
from cloob_cli.training.setup import PairSplit

_SHOWN = 5


def record(data: PairSplit) -> dict[str, Any]:
    """The parts of the training data, and of the held-out pairs where they have a source of their own, for JSON."""
    made = {"train": to_json(data.source.parts())}
    if data.held_out is not None and data.held_out.source is not data.source:
        made["validation"] = to_json(data.held_out.source.parts())
    return made


def compare(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """What to tell of data that have changed since the checkpoint of `step`; nothing where they have not.

    Raises:
        UsageError: the training data have changed: their pairs would come in another order, some of them twice.
    """
    if not before:
        return [f"the checkpoint of step {step} does not say what its data were; whether they changed is not known"]
    train, held_out = (_changes(before.get(name, []), now.get(name, [])) for name in ("train", "validation"))
    if train:
        raise UsageError(
            f"the training data have changed since step {step}: {train}",
            "go on with the same data, wherever they lie now (data.train), or start anew with another --out",
        )
    return [f"the validation data have changed since step {step}: {held_out}"] if held_out else []


def _changes(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    found = changes(from_json(before), from_json(now))
    more = f"; and {len(found) - _SHOWN} more changes" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
