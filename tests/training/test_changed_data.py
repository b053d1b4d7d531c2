"""A run goes on with the data of its checkpoint or not at all, and tells what of a source it leaves out."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe, write_pairs

from cloob_cli.errors import UsageError
from cloob_cli.training import loop
from cloob_cli.training.events import CheckpointSaved, Event, Finished, Notice, PairSkipped, Started


def write_tars(folder: Path, pairs: Path) -> Path:
    """The pairs of a folder in four tars."""
    folder.mkdir()
    stems = sorted(path.stem for path in pairs.glob("*.png"))
    for number in range(4):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for stem in stems[16 * number : 16 * number + 16]:
                tar.add(pairs / f"{stem}.png", f"{stem}.png")
                tar.add(pairs / f"{stem}.txt", f"{stem}.txt")
    return folder


@pytest.fixture(params=["tars", "folder"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pairs = write_pairs(tmp_path / "pairs")
    return pairs if request.param == "folder" else write_tars(tmp_path / "tars", pairs)


def run(folder: Path, recipe, *, resume: bool = False, until: int | None = None) -> list[Event]:
    """All events of a run, or those up to the checkpoint of step `until`, after which it is cut off."""
    events, seen = loop.train_recipe(recipe, folder, device="cpu", resume=resume), []
    for event in events:
        seen.append(event)
        if isinstance(event, CheckpointSaved) and event.step == until:
            events.close()
    return seen


def of_kind(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_moved_data_go_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    run(tmp_path / "straight", tiny_recipe(data))
    run(tmp_path / "run", tiny_recipe(data), until=20)
    moved = data.rename(tmp_path / "elsewhere")
    events = run(tmp_path / "run", tiny_recipe(moved), resume=True)
    assert of_kind(events, Notice) == []
    assert of_kind(events, Started)[0].first_step == 20
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data"]["train"] == str(moved)


def test_changed_data_are_refused_and_the_change_is_told(data: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", tiny_recipe(data, train__batch_size=8), until=10)
    if data.name == "tars":
        (data / "1.tar").unlink()
        said = r"training data have changed since step 10: 1\.tar \(16 pairs\) is gone$"
    else:
        (data / "17.png").unlink()
        said = "training data have changed since step 10: pairs had 64 pairs and has 63$"
    with pytest.raises(UsageError, match=said) as caught:
        run(tmp_path / "run", tiny_recipe(data, train__batch_size=8), resume=True)
    assert "--out" in (caught.value.hint or "")


def test_changed_validation_data_are_told(data: Path, tmp_path: Path) -> None:
    held_out = write_pairs(tmp_path / "held_out")
    recipe = tiny_recipe(data, data__validation=str(held_out), train__steps=20)
    run(tmp_path / "run", recipe, until=10)
    (held_out / "03.png").unlink()
    events = run(tmp_path / "run", recipe, resume=True)
    [notice] = of_kind(events, Notice)
    assert notice.text == "the validation data have changed since step 10: held_out had 64 pairs and has 63"
    assert isinstance(events[-1], Finished)


def test_a_checkpoint_that_does_not_say_what_its_data_were(data: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", tiny_recipe(data, train__steps=20), until=10)
    path = tmp_path / "run" / "checkpoints" / "step-00000010" / "state.json"
    state = json.loads(path.read_text())
    del state["data"]
    path.write_text(json.dumps(state))
    events = run(tmp_path / "run", tiny_recipe(data, train__steps=20), resume=True)
    assert "does not say what its data were" in of_kind(events, Notice)[0].text
    assert isinstance(events[-1], Finished)


def test_what_a_tar_lost_is_counted_and_listed(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", write_pairs(tmp_path / "pairs"))
    (tars / "2.tar").write_bytes(b"")
    with tarfile.open(tars / "3.tar") as tar:
        header = next(member.offset_data - 512 for member in tar if member.name == "55.png")
    with (tars / "3.tar").open("r+b") as stream:
        stream.seek(header)
        stream.write(b"\xff" * 40)
    with tarfile.open(tars / "4.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    events = run(tmp_path / "run", tiny_recipe(tars, train__steps=4))
    assert of_kind(events, Started)[0].pairs == 47
    reasons = {Path(event.name).relative_to(tars).as_posix(): event.reason for event in of_kind(events, PairSkipped)}
    assert reasons["2.tar"].startswith("holds no sample")
    assert reasons["3.tar"].startswith("damaged at byte")
    assert reasons["3.tar/55"] == "no image"
    assert reasons["4.tar"].startswith("holds no sample")
    assert len(reasons) == events[-1].skipped == 4
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {Path(row["name"]).relative_to(tars).as_posix(): row["reason"] for row in listed} == reasons
