"""Training runs of a second each: they learn, they repeat to the bit, they resume to the bit, they stop in time."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import threading
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
import torch
from command_line import cloob
from margins import EPS, close, within
from PIL import Image
from safetensors.torch import load_file
from tiny_run import COLORS, tiny_recipe, write_class_folders, write_pairs, write_recipe

import cloob_cli
from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES, class_embeddings
from cloob_cli.errors import DataError, DiskSpaceError, NonFiniteLossError, TrainingError, UsageError
from cloob_cli.recipe import load_recipe
from cloob_cli.training import finish, loop, step
from cloob_cli.training.events import (
    CheckpointSaved,
    Event,
    Finished,
    Notice,
    PairSkipped,
    Started,
    StepDone,
    Validated,
)
from cloob_cli.training.run_folder import RunFolder, RunLock, claim, find_start
from cloob_cli.training.telemetry import draw_loss_curve, read_rows
from cloob_cli.training.validation import Validator


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


def run(folder: Path, recipe, *, resume: bool = False) -> list[Event]:
    return list(loop.train_recipe(recipe, folder, device="cpu", resume=resume))


def run_until(folder: Path, recipe, last: int) -> None:
    """A run that is cut off right after the checkpoint of step `last`."""
    events = loop.train_recipe(recipe, folder, device="cpu")
    for event in events:
        if isinstance(event, CheckpointSaved) and event.step == last:
            break
    events.close()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def of_kind(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others are compared with."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with mock.patch.object(finish, "draw_loss_curve", draw_loss_curve):
        run(folder, tiny_recipe(data))
    return folder


@pytest.mark.numeric
def test_a_run_learns_and_leaves_a_model_that_opens(data, tmp_path):
    classes = write_class_folders(tmp_path / "classes")
    changes = {"validation__zero_shot": [str(classes)], "validation__every": 60, "data__validation": str(data)}
    recipe = tiny_recipe(data, train__steps=150, train__batch_size=32, objective__mask_equal_captions=True, **changes)
    events = run(tmp_path / "run", recipe)

    started = of_kind(events, Started)[0]
    assert started.pairs == started.validation_pairs == 64
    steps = of_kind(events, StepDone)
    assert [event.step for event in steps] == list(range(5, 151, 5))
    assert steps[-1].loss < steps[0].loss - 1
    assert all(0 <= event.data_wait_fraction <= 1 and event.images_per_second > 0 for event in steps)
    assert [event.step for event in of_kind(events, Validated)] == [60, 120, 150]
    finished = events[-1]
    assert isinstance(finished, Finished)
    # Rounding makes each machine's model another one. Chance misses 0.84 of the pairs, and 0.875 of 32 images with a
    # deviation of 0.06.
    within(1 - finished.metrics["retrieval/image_to_text/recall_10"], 0.5, "between a model that learns and chance")
    within(1 - finished.metrics["zero_shot/classes/top1"], 0.6, "between a model that learns and chance")

    model = cloob_cli.load(tmp_path / "run" / "model", device="cpu")
    names = class_embeddings(model.encode_text, model.tokenize, [[c] for c in COLORS], DEFAULT_TEMPLATES)
    pixels = torch.stack(
        [model.preprocess(Image.open(path)) for color in COLORS for path in sorted((classes / color).iterdir())]
    )
    right = (model.encode_image(pixels) @ names.T).argmax(1) == torch.arange(8).repeat_interleave(4)
    top1 = finished.metrics["zero_shot/classes/top1"]
    close(float(right.double().mean()), top1, "a fraction of 32 images; no two classes are equally near", atol=1e-6)


def test_what_a_run_folder_holds(straight, data):
    rows = read_rows(straight / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert {"loss", "learning_rate", "images_per_second", "gradient_norm", "inv_tau"} <= rows[0].keys()
    with Image.open(straight / "loss.png") as image:
        image.load()
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["step-00000020", "step-00000030"]
    config = json.loads((straight / "model" / "config.json").read_text())
    assert config["recipe"]["train"]["steps"] == 30
    assert config["metrics"]["loss"] == rows[-1]["loss"]
    # The trainer's own folders are nobody's business.
    assert str(data.parent) not in (straight / "model" / "config.json").read_text()
    assert str(data.parent) not in (straight / "model" / "README.md").read_text()
    assert [path for path in straight.rglob(".*")] == []


@pytest.mark.parametrize("changes", [{}, {"data__in_memory": False}, {"data__in_memory": False, "data__workers": 2}])
def test_the_same_seed_gives_the_same_bits_however_the_data_comes(straight, data, tmp_path, changes):
    run(tmp_path / "run", tiny_recipe(data, **changes))
    assert_same(straight, tmp_path / "run")


def test_another_seed_gives_other_weights(straight, data, tmp_path):
    run(tmp_path / "run", tiny_recipe(data, seed=1))
    assert not torch.equal(weights(straight)["visual.conv1.weight"], weights(tmp_path / "run")["visual.conv1.weight"])


def test_a_resumed_run_ends_with_the_same_bits(straight, data, tmp_path):
    run_until(tmp_path / "run", tiny_recipe(data), 20)
    assert not (tmp_path / "run" / "model").exists()
    events = run(tmp_path / "run", tiny_recipe(data, data__workers=1, train__log_every=5), resume=True)
    assert of_kind(events, Started)[0].first_step == 20
    assert_same(straight, tmp_path / "run")
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [5, 10, 15, 20, 25, 30]


def test_average_and_learned_temperature_resume_to_the_same_bits(data, tmp_path):
    recipe = tiny_recipe(data, train__ema=0.9, objective__learn_inv_tau=True, objective__inv_tau=14.0)
    run(tmp_path / "whole", recipe)
    run_until(tmp_path / "cut", recipe, 10)
    run(tmp_path / "cut", recipe, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    # What is saved is the average, not the last weights.
    last = load_file(tmp_path / "whole" / "checkpoints" / "step-00000030" / "model.safetensors")
    average = load_file(tmp_path / "whole" / "checkpoints" / "step-00000030" / "ema.safetensors")
    saved = weights(tmp_path / "whole")
    assert torch.equal(saved["visual.conv1.weight"], average["visual.conv1.weight"])
    assert not torch.equal(saved["visual.conv1.weight"], last["visual.conv1.weight"])


@pytest.mark.parametrize("damage", ["cut", "changed", "without state"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(straight, data, tmp_path, damage):
    run_until(tmp_path / "run", tiny_recipe(data), 20)
    newest = tmp_path / "run" / "checkpoints" / "step-00000020"
    if damage == "cut":
        content = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content = bytearray((newest / "optimizer.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (newest / "optimizer.pt").write_bytes(content)
    else:
        (newest / "state.json").unlink()
    events = run(tmp_path / "run", tiny_recipe(data), resume=True)
    assert isinstance(events[0], Notice)
    assert "step-00000020" in events[0].text
    assert of_kind(events, Started)[0].first_step == 10
    assert_same(straight, tmp_path / "run")


def test_only_damaged_checkpoints_are_an_error(data, tmp_path):
    run_until(tmp_path / "run", tiny_recipe(data), 10)
    (tmp_path / "run" / "checkpoints" / "step-00000010" / "state.json").write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        run(tmp_path / "run", tiny_recipe(data), resume=True)


def test_a_folder_is_never_taken_over(straight, data, tmp_path):
    with pytest.raises(UsageError, match="already holds a run"):
        run(straight, tiny_recipe(data))
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate: 0\.003 then, 0\.5 now"):
        run(straight, tiny_recipe(data, optimizer__learning_rate=0.5), resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a run's folder"):
        run(tmp_path, tiny_recipe(data))


def test_resume_without_a_run_starts_one(straight, data, tmp_path):
    run(tmp_path / "new", tiny_recipe(data), resume=True)
    assert_same(straight, tmp_path / "new")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(data, tmp_path):
    recipe = tiny_recipe(data, optimizer__learning_rate=1e38, optimizer__warmup_steps=28, train__checkpoint_every=1)
    with pytest.raises(NonFiniteLossError, match="no longer finite at step") as caught:
        run(tmp_path / "run", recipe)
    assert "learning_rate" in caught.value.hint
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert str(path) in caught.value.message or path.name < caught.value.message[-14:]
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.numeric
@pytest.mark.parametrize("objective", ["cloob", "infoloob", "clip", "clip_hopfield"])
def test_micro_batches_train_like_the_whole_batch(data, tmp_path, objective):
    changes = {"objective__name": objective, "objective__learn_inv_tau": True, "train__steps": 6}
    changes |= {"objective__inv_tau": 10.0, "train__log_every": 1, "objective__hopfield_warmup": 0.3}
    whole = run(tmp_path / "whole", tiny_recipe(data, **changes))
    slices = run(tmp_path / "slices", tiny_recipe(data, train__micro_batch_size=5, **changes))
    assert of_kind(slices, Started)[0].micro_batch_size == 5
    losses = [[event.loss for event in of_kind(events, StepDone)] for events in (whole, slices)]
    close(losses[0], losses[1], "gradients equal to 1e-5; five steps of Adam enlarge that", rtol=1e-4)
    assert abs(of_kind(whole, StepDone)[-1].inv_tau - 10.0) > 1e-3


def test_retrieval_is_switched_on_after_its_warm_up(data, tmp_path, monkeypatch):
    asked = []
    real = step.contrastive_loss

    def recording(*arguments, objective: str, **options):
        asked.append(objective)
        return real(*arguments, objective=objective, **options)

    monkeypatch.setattr(step, "contrastive_loss", recording)
    run(tmp_path / "run", tiny_recipe(data, train__steps=10, objective__hopfield_warmup=0.3))
    assert asked == ["infoloob"] * 3 + ["cloob"] * 7


@pytest.mark.numeric
def test_a_learned_temperature_is_written_into_the_model(data, tmp_path):
    recipe = tiny_recipe(data, objective__learn_inv_tau=True, objective__inv_tau=9.0, optimizer__learning_rate=0.02)
    events = run(tmp_path / "run", recipe)
    temperatures = [event.inv_tau for event in of_kind(events, StepDone)]
    assert len(set(temperatures)) > 1
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    close(config["inv_tau"], temperatures[-1], "one exponential in float32", rtol=4 * EPS)


@pytest.mark.numeric
@pytest.mark.parametrize("changes", [
    {"train__precision": "bf16"},
    {"train__gradient_checkpointing": True},
    {"optimizer__gradient_clip": None, "objective__implementation": "definition"},
    {"train__save_precision": "fp16"},
    {"model": {"embed_dim": 16, "vision": {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1]},
               "text": {"context_length": 8, "width": 16, "layers": 1, "heads": 2}}},
])  # fmt: skip
def test_options_run_and_their_model_opens(data, tmp_path, changes):
    events = run(tmp_path / "run", tiny_recipe(data, train__steps=3, **changes))
    assert isinstance(events[-1], Finished)
    model = cloob_cli.load(tmp_path / "run" / "model", device="cpu")
    close(float(model.encode_text(model.tokenize(["red left"])).norm()), 1.0, "a unit row in float32", atol=8 * EPS)


@pytest.mark.numeric
def test_checkpointed_activations_give_the_same_loss(straight, data, tmp_path):
    run(tmp_path / "run", tiny_recipe(data, train__gradient_checkpointing=True))
    before, after = (read_rows(folder / "metrics.jsonl")[-1]["loss"] for folder in (straight, tmp_path / "run"))
    close(after, before, "rounding, enlarged by thirty steps of Adam", rtol=1e-3)


def test_unreadable_pairs_are_skipped_once_and_listed(tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    (pairs / "07.png").write_bytes(b"no image")
    (pairs / "12.png").write_bytes((pairs / "12.png").read_bytes()[:40])
    events = run(tmp_path / "run", tiny_recipe(pairs, train__steps=12))
    assert sorted(Path(event.name).name for event in of_kind(events, PairSkipped)) == ["07.png", "12.png"]
    assert events[-1].skipped == 2
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {Path(row["name"]).name for row in listed} == {"07.png", "12.png"}
    assert all(row["reason"] for row in listed)


def test_a_fraction_of_the_pairs_is_held_out(data, tmp_path):
    recipe = tiny_recipe(data, data__validation_fraction=0.25, train__steps=2)
    events = run(tmp_path / "run", recipe)
    started = of_kind(events, Started)[0]
    assert (started.pairs, started.validation_pairs) == (48, 16)
    assert "retrieval/text_to_image/recall_5" in events[-1].metrics


def test_too_few_pairs_and_missing_validation_data_fail_at_once(data, tmp_path):
    with pytest.raises(DataError, match="fewer than one batch"):
        run(tmp_path / "a", tiny_recipe(data, train__batch_size=65))
    with pytest.raises(DataError, match="no data set"):
        run(tmp_path / "b", tiny_recipe(data, validation__zero_shot=[str(tmp_path / "nowhere")]))
    with pytest.raises(DataError, match="too few") as caught:
        run(tmp_path / "c", tiny_recipe(data, data__validation_fraction=0.01))
    assert "data.validation_fraction=0 holds out none" in str(caught.value.hint)


def test_training_works_outside_the_main_thread(straight, data, tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path / "run", tiny_recipe(data)))
    thread.start()
    thread.join()
    assert_same(straight, tmp_path / "run")


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_held_out_pairs_without_a_caption_are_skips(tmp_path, form):
    pairs = write_pairs(tmp_path / "pairs")
    if form == "folder":
        for path in sorted(pairs.glob("*.txt"))[::4]:
            path.unlink()
    else:
        images = sorted(pairs.glob("*.png"))
        captions = [path.with_suffix(".txt").read_text() for path in images]
        captions[::4] = [None, ""] * (len(images) // 8)
        table = pyarrow.table({"image": [path.read_bytes() for path in images], "caption": captions})
        pairs = tmp_path / "pairs.parquet"
        pyarrow.parquet.write_table(table, pairs)
    recipe = tiny_recipe(pairs, data__validation_fraction=0.4, validation__every=4, train__steps=8)
    events = run(tmp_path / "run", recipe)
    assert len(of_kind(events, Validated)) == 2
    assert {event.reason for event in of_kind(events, PairSkipped)} == {"no caption"}
    assert events[-1].skipped == 16
    assert "retrieval/image_to_text/recall_1" in events[-1].metrics
    cloob_cli.load(tmp_path / "run" / "model", device="cpu")


@pytest.mark.parametrize("failing", ["run", "trained_model_card", "draw_loss_curve"])
def test_what_fails_after_the_last_step_does_not_cost_the_model(straight, data, tmp_path, monkeypatch, failing):
    recipe = tiny_recipe(data, data__validation=str(data), validation__every=20)

    def fails(*arguments, **options):
        raise RuntimeError("out of paper\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(Validator if failing == "run" else finish, failing, fails)
        if failing == "draw_loss_curve":
            events = run(tmp_path / "run", recipe)
            assert any("out of paper" in event.text for event in of_kind(events, Notice))
        else:
            with pytest.raises((TrainingError, RuntimeError), match="out of paper"):
                run(tmp_path / "run", recipe)
    assert_same(straight, tmp_path / "run")
    cloob_cli.load(tmp_path / "run" / "model", device="cpu")
    finished = run(tmp_path / "run", recipe, resume=True)[-1]
    assert finished.metrics["loss"] == read_rows(straight / "metrics.jsonl")[-1]["loss"]
    assert "retrieval/image_to_text/recall_1" in finished.metrics


def test_a_validation_that_fails_on_the_way_does_not_stop_the_run(straight, data, tmp_path, monkeypatch):
    recipe = tiny_recipe(data, data__validation=str(data), validation__every=10)
    real, calls = Validator.run, []

    def fails_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no room")
        return real(*arguments, **options)

    monkeypatch.setattr(Validator, "run", fails_once)
    events = run(tmp_path / "run", recipe)
    assert [event.step for event in of_kind(events, Validated)] == [20, 30]
    assert ["no room" in event.text for event in of_kind(events, Notice)] == [True]
    assert_same(straight, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_alone_by_resume(straight, data, tmp_path):
    before = contents(straight)
    events = run(straight, tiny_recipe(data), resume=True)
    assert [type(event) for event in events] == [Finished]
    assert events[0].already
    assert events[0].metrics["loss"] == read_rows(straight / "metrics.jsonl")[-1]["loss"]
    assert contents(straight) == before


def test_a_run_cut_off_between_its_last_step_and_its_end_is_ended_by_resume(straight, data, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    finished = run(tmp_path / "run", tiny_recipe(data), resume=True)[-1]
    assert not finished.already
    assert_same(straight, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["metrics"]["loss"] == finished.metrics["loss"]
    assert finished.metrics["loss"] == read_rows(straight / "metrics.jsonl")[-1]["loss"]


def test_one_run_in_a_folder_at_a_time(straight, data, tmp_path):
    """Another process fails while the first one is at work, and changes nothing."""
    recipe = write_recipe(tmp_path / "recipe.toml", data)
    first = loop.train_recipe(load_recipe(recipe), tmp_path / "run", device="cpu")
    assert any(isinstance(event, StepDone) for event in first)  # it is at work, and goes on below
    before = contents(tmp_path / "run")
    result = cloob("train", recipe, "--device", "cpu", "--out", tmp_path / "run", "--resume", "--quiet")
    assert result.returncode == 2
    assert result.stderr.startswith("error: another process is training in")
    assert len(result.stderr.splitlines()) == 2
    assert contents(tmp_path / "run") == before
    assert isinstance(list(first)[-1], Finished)
    assert_same(straight, tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a run"):
        run(tmp_path / "run", load_recipe(recipe))


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_runs_that_start_in_a_new_folder_one_fails(data, tmp_path, resume):
    folder, recipe, locks = RunFolder(tmp_path / "run"), tiny_recipe(data), [RunLock(), RunLock()]
    for lock in locks:
        find_start(folder, recipe, torch.device("cpu"), resume, lock)  # nothing there yet
    claim(folder, recipe, resume, locks[0])
    with pytest.raises(UsageError, match="another process"):
        claim(folder, recipe, resume, locks[1])
    locks[0].release()  # the first is done before the second has opened its data
    with pytest.raises(UsageError, match="already holds a run"):
        claim(folder, recipe, resume, locks[1])
    locks[1].release()


def test_what_a_killed_save_left_is_removed(data, tmp_path):
    run_until(tmp_path / "run", tiny_recipe(data), 10)
    for name in ("checkpoints/.step-00000020.cloob-0123abcd.partial", ".model.cloob-4567abcd.partial"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "run" / ".metrics.jsonl.cloob-89abcdef.partial").write_bytes(b"half")
    events = loop.train_recipe(tiny_recipe(data), tmp_path / "run", device="cpu", resume=True)
    next(events)  # before anything new is written
    assert [path for path in (tmp_path / "run").rglob(".*")] == []
    events.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("how_many", ["one", "all"])
def test_a_killed_data_worker_is_one_message(data, tmp_path, how_many):
    """One that is missed, and all of them with batches still to be fetched from them."""
    recipe = tiny_recipe(data, data__in_memory=False, data__workers=2, train__steps=500, train__log_every=1)
    others = set(multiprocessing.active_children())  # what an earlier test of this process has not yet let go of
    events = loop.train_recipe(recipe, tmp_path / "run", device="cpu")
    assert any(isinstance(event, StepDone) for event in events)
    workers = sorted(set(multiprocessing.active_children()) - others, key=lambda child: child.name)
    assert len(workers) == 2
    for worker in workers[: 1 if how_many == "one" else None]:
        worker.kill()
        worker.join()
    with pytest.raises(DataError, match="a process that reads images was ended from outside"):
        list(events)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("largest", [60_000, 150_000])  # bytes: the weights do not fit, the optimizer's state does not
def test_a_full_disk_is_one_line_that_names_the_folder(data, tmp_path, largest):
    import resource

    recipe = tiny_recipe(data, train__log_every=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    events = loop.train_recipe(recipe, tmp_path / "run", device="cpu")
    assert any(isinstance(event, StepDone) for event in events)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(DiskSpaceError, match="no room is left on its disk") as caught:
            list(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / "run") in caught.value.message
    assert "--resume" in caught.value.hint
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    run(tmp_path / "run", recipe, resume=True)


def test_a_run_that_learns_nothing_says_so(data, tmp_path):
    changes = {"optimizer__learning_rate": 1e-12, "optimizer__warmup_steps": 0, "objective__hopfield_warmup": 0.0}
    changes |= {"objective__inv_tau": 1e-3, "objective__scale_hopfield": 1e-3}  # any embeddings give equal scores
    stuck, learning = (run(tmp_path / f"{k}", tiny_recipe(data, **more)) for k, more in enumerate([changes, {}]))
    assert ["nothing is learned" in event.text for event in of_kind(stuck, Notice)] == [True]
    assert of_kind(learning, Notice) == []


def test_validation_without_anything_to_validate_on_is_told(data, tmp_path):
    events = run(tmp_path / "run", tiny_recipe(data, validation__every=1, train__steps=2))
    assert ["validation.every has nothing" in event.text for event in of_kind(events, Notice)] == [True]
