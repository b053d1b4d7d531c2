"""Agreement among the processes of one run, with a stand-in for the second process."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import tiny_recipe, write_pairs
from torch import distributed

from cloob_cli import process_exchange
from cloob_cli.errors import TrainingError
from cloob_cli.training import loop, processes


def test_processes_with_different_facts_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"rate": 0.002, "same": 1}

    def gather(told: list, facts: dict) -> None:
        told[:] = [facts, others]

    monkeypatch.setattr(process_exchange, "several", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    processes.agree(dict(others))
    with pytest.raises(TrainingError, match=r"^the processes differ in rate: 0.003 in process 0, 0.002 in process 1$"):
        processes.agree({"rate": 0.003, "same": 1})


def test_a_run_compares_its_recipe_before_it_writes_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(The slow tests of `cloob train` have two processes with different recipes.)"""

    def differ(facts: dict) -> None:
        assert facts["the recipe's optimizer.learning_rate"] == 0.003
        raise TrainingError("they differ")

    monkeypatch.setattr(processes, "agree", differ)
    with pytest.raises(TrainingError, match="they differ"):
        list(loop.train_recipe(tiny_recipe(write_pairs(tmp_path / "pairs")), tmp_path / "run", device="cpu"))
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert not list(tmp_path.rglob("recipe.json"))
