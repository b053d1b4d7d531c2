"""`cloob zoo verify --scores`: an entry's scores are measured again on the data that is here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import cloob_here
from tiny_run import write_class_folders

from cloob_cli import assets
from cloob_cli.commands.zoo_verify import check_scores
from cloob_cli.errors import DataError, UsageError
from cloob_cli.evaluation.suites import read_suite
from cloob_cli.registry import entries
from cloob_cli.registry.entries import Measurement, Score

NAME = assets.BUNDLED_MODEL


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two of the suite's sets, both of colors."""
    monkeypatch.setenv("CLOOB_HOME", str(tmp_path / "home"))
    for name in ("flags_circle", "mnist"):
        write_class_folders(tmp_path / "data" / name)
    return tmp_path / "data"


def test_scores_that_differ_and_data_that_is_not_here(data: Path) -> None:
    done = cloob_here(
        "zoo", "verify", NAME, "--scores", "--data", data, "--json", cwd=data, CLOOB_HOME=str(data.parent / "home")
    )
    assert done.returncode == 1, done.stderr
    states = {check["what"].split()[0]: check["state"] for check in json.loads(done.stdout)}
    assert (states["flags_circle"], states["emoji_emojione"], states["mean"]) == ("wrong", "not here", "not here")
    assert states["model.safetensors"] == "right"


def test_a_score_is_held_to_a_tenth_of_a_point(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cloob_here("eval", NAME, data / "mnist", "--json", cwd=data, CLOOB_HOME=str(data.parent / "home"))
    true = round(100 * json.loads(model.stdout)[0]["metrics"]["acc1"], 1)

    def score(value: float, *sets: str) -> Score:
        measured = Measurement(suite="pictograms", sets=list(sets))
        return Score(dataset=" and ".join(sets), metric="zero-shot top-1", value=value, by="x", measured=measured)

    found = entries.find_entry(NAME)
    scores = [score(true, "mnist", "flags_circle"), score(true + 0.1, "mnist"), score(true + 0.2, "mnist")]
    unmeasured = Score(dataset="other", metric="zero-shot top-1", value=1.0, by="x")
    entry = found.model_copy(update={"scores": [*scores, unmeasured]})
    monkeypatch.setattr(entries, "find_entry", lambda name: entry)
    checks = check_scores(NAME, data)
    assert [check.state for check in checks] == ["right", "right", "wrong"]
    assert checks[2].detail == f"{true:.1f} %, the entry says {true + 0.2:.1f} %"
    entry = found.model_copy(update={"scores": [unmeasured]})
    with pytest.raises(UsageError, match="no score that can be measured again"):
        check_scores(NAME, data)


def test_nothing_is_here(data: Path) -> None:
    with pytest.raises(DataError, match="not one data set is here"):
        check_scores(NAME, data / "nowhere")


def test_measurements_name_sets_that_their_suite_has() -> None:
    measured = [score.measured for entry in entries.all_entries() for score in entry.scores if score.measured]
    assert len(measured) > 20
    for one in measured:
        names = {known.name for known in read_suite(assets.suites_folder() / f"{one.suite}.toml").datasets}
        assert set(one.sets) <= names
