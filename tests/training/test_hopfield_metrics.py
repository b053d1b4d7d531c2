"""Measures of retrieval that a run writes to metrics.jsonl, and its notice where retrieval has collapsed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import run_weights, tiny_recipe, write_class_folders, write_pairs

from cloob_cli.recipe import ObjectiveSection
from cloob_cli.training import loop
from cloob_cli.training.events import Finished, StepDone
from cloob_cli.training.hopfield_metrics import MechanismWatch, measure
from cloob_cli.training.metrics_file import read_rows


def alike(count: int = 64) -> torch.Tensor:
    noise = torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(torch.ones(count, 16) + 0.01 * noise, dim=1)


def test_known_batches() -> None:
    found = measure(torch.eye(32), alike(32), 50.0)
    assert found["mechanism/effective_patterns/image"] < 1.01
    assert found["mechanism/effective_patterns/text"] > 30
    assert (found["mechanism/global_mean/image"], found["mechanism/global_mean/text"]) == (0.0, 1.0)
    assert found["mechanism/patterns"] == 32


def test_collapse_is_told_once_after_the_warm_up_and_twice_in_a_row() -> None:
    watch = MechanismWatch(ObjectiveSection(scale_hopfield=8.0), every=10, from_step=25)
    assert [step for step in range(1, 41) if watch.wants(step)] == [10, 20, 30, 40]
    told = [watch.look(step, alike(), alike())[1] for step in (10, 20, 30, 40, 50)]
    assert [text is not None for text in told] == [False, False, False, True, False]
    assert "scale_hopfield" in str(told[3])
    watch = MechanismWatch(ObjectiveSection(scale_hopfield=50.0), every=10, from_step=0)
    assert watch.look(10, alike(), alike())[1] is None
    assert watch.look(20, torch.eye(16), alike())[1] is None  # one side that still tells patterns apart is no collapse
    assert watch.look(30, alike(), alike())[1] is None


@pytest.mark.parametrize("name", ["infoloob", "clip"])
def test_an_objective_without_retrieval_is_not_looked_at(name: str) -> None:
    assert not MechanismWatch(ObjectiveSection(name=name), every=1, from_step=0).wants(1)


def test_a_run_writes_its_measures_and_every_data_set(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    classes = write_class_folders(tmp_path / "classes")
    changes = {"train__log_every": 1, "train__steps": 20, "validation__datasets": [str(classes), str(data)]}
    events = list(loop.train_recipe(tiny_recipe(data, **changes), tmp_path / "run", device="cpu"))
    assert [event.step for event in events if isinstance(event, StepDone) and event.mechanism] == [10, 20]
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "mechanism/patterns" in row]
    assert [row["step"] for row in rows] == [10, 20]
    assert all("loss" in row and "mechanism" not in row for row in rows)
    assert all(1 <= row["mechanism/effective_patterns/image"] <= 16 for row in rows)
    finished = next(event for event in events if isinstance(event, Finished))
    assert {"zero_shot/classes/top1", "zero_shot/classes/mean_per_class_recall"} < set(finished.metrics)
    assert "retrieval/pairs/text_to_image/recall_5" in finished.metrics


def test_looking_changes_no_weight(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    one = run_weights(tiny_recipe(data, train__steps=10, train__log_every=1), tmp_path / "one")
    other = run_weights(tiny_recipe(data, train__steps=10, train__log_every=10), tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)
