"""The runs of scripts/claim.py: its recipes differ in the loss alone, and its tables are made of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from script_module import script_module

from cloob_cli.recipe import load_recipe

ROOT = Path(__file__).parents[1]
LOSSES = {
    "infonce": ("clip", 0.0),
    "infonce-hopfield": ("clip_hopfield", 0.4),
    "infoloob": ("infoloob", 0.0),
    "cloob": ("cloob", 0.4),
    "cloob-from-start": ("cloob", 0.0),
}


@pytest.fixture(scope="module")
def claim() -> Any:
    return script_module("claim")


def test_the_recipes_differ_in_the_loss_alone(claim: Any) -> None:
    assert claim.arms() == sorted(LOSSES)
    shared = []
    for arm, (objective, warm_up) in LOSSES.items():
        recipe = load_recipe(claim.RECIPES / f"{arm}.toml")
        assert (recipe.objective.name, recipe.objective.hopfield_warmup) == (objective, warm_up)
        assert (recipe.objective.inv_tau, recipe.objective.mask_equal_captions) == (30.0, True)
        assert recipe.objective.scale_hopfield == (14.3 if "hopfield" in objective or objective == "cloob" else 8.0)
        shared.append(recipe.model_dump(exclude={"name", "description", "objective"}))
    assert all(each == shared[0] for each in shared)


def test_every_setting_of_the_plan_is_a_change_that_recipes_take(claim: Any) -> None:
    plan = claim.read_plan(claim.PLAN)
    assert len(plan.settings) * len(LOSSES) + len(plan.seeds) * len(LOSSES) + len(plan.around) >= 20
    assert len(plan.seeds) >= 3
    for settings in [*plan.settings.values(), *plan.around.values()]:
        load_recipe(claim.RECIPES / "cloob.toml", settings)


def test_an_interval_is_students(claim: Any) -> None:
    assert claim.interval([2.0]) == "2.00"
    # Mean 2, standard deviation 1, three values: 4.303 / sqrt(3) = 2.484.
    assert claim.interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"


def test_the_table_has_a_line_for_each_loss(claim: Any) -> None:
    def row(variant: str, top: float) -> dict[str, Any]:
        scores = [{"dataset": name, "metrics": {"acc1": top}} for name in ("flags", "emoji")]
        scores.append({"dataset": "mnist", "metrics": {"acc1": 0.9}})  # counts for no mean
        return {"variant": variant, "validation_top1": top, "recall_10": 2 * top, "scores": scores}

    lines = list(claim.scores_table([row("cloob", 0.5), row("infonce", 0.25), row("cloob", 0.5)]))
    assert lines[0] == "| loss | runs | validation | R@10 | flags | emoji | mnist | mean without mnist |"
    half, all_ = "50.00 ± 0.00", "100.00 ± 0.00"
    assert lines[2] == f"| cloob | 2 | {half} | {all_} | {half} | {half} | 90.00 ± 0.00 | {half} |"
    assert lines[3] == "| infonce | 1 | 25.00 | 50.00 | 25.00 | 25.00 | 90.00 | 25.00 |"


def test_the_search_s_table_marks_what_was_kept(claim: Any) -> None:
    side = {"eigenvalues_99": 20, "ajne": 99.6}
    row = {"arm": "cloob", "setting": "plain", "kept": True, "validation_top1": 0.01, "recall_10": 0.1}
    [_, _, line] = claim.search_table([row | {"analysis": {"embeddings": {"image": side, "text": side}}}])
    assert line == "| plain | **cloob** | 1.00 | 10.00 | 20 | 100 | 20 | 100 |"
