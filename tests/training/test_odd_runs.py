"""Runs with odd data, numbers and ends: what is cut short, in use, full, empty or not finite."""

from __future__ import annotations

import json
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune import finetuning
from margins import close
from tiny_model import RESNET, VIT, save_tiny_model
from tiny_run import settings, tiny_recipe, write_pairs

from cloob_cli.checkpoint.folder import open_model
from cloob_cli.core.model import build
from cloob_cli.errors import DataError, DeviceError, DiskSpaceError, Interrupted, RecipeError
from cloob_cli.recipe import Recipe
from cloob_cli.strict_model import parse
from cloob_cli.training import loop, run_folder
from cloob_cli.training.checkpoints import Progress, checkpoints, newest_valid, save_checkpoint
from cloob_cli.training.dry_run import dry_run
from cloob_cli.training.events import CheckpointSaved, Event, Finished, Started, StepDone, Validated
from cloob_cli.training.metrics_file import MetricsFile, read_rows
from cloob_cli.training.run_folder import RunFolder
from cloob_cli.training.validation import Validator

WHOLE_AND_SLICED: list[dict[str, Any]] = [{}, {"train__micro_batch_size": 1}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


def run(folder: Path, recipe: Recipe, *, resume: bool = False) -> list[Event]:
    return list(loop.train_recipe(recipe, folder, device="cpu", resume=resume))


def save(folder: Path, step: int, keep: int = 1) -> Path:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    return save_checkpoint(folder, Progress(step, 0.0, "fp32"), model, optimizer, None, None, keep)


def test_a_damaged_later_checkpoint_does_not_take_the_place_of_a_new_one(tmp_path: Path) -> None:
    """The run goes on from step 20, and another `checkpoint_every` saves before step 30 comes."""
    save(tmp_path, 20)
    (save(tmp_path, 30, keep=2) / "model.safetensors").write_bytes(b"")
    made = save(tmp_path, 25)
    assert newest_valid(tmp_path)[0] == made
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000025", "step-00000030"]
    assert newest_valid(tmp_path)[0] == made
    last = save(tmp_path, 30)
    assert checkpoints(tmp_path) == [last]
    assert newest_valid(tmp_path) == (last, [])


def test_steps_of_nine_digits_come_after_those_of_eight(tmp_path: Path) -> None:
    for name in ("step-100000000", "step-99999999"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-99999999", "step-100000000"]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path: Path) -> None:
    notes = save(tmp_path, 10) / "notes"
    notes.mkdir()
    made = save(tmp_path, 20)
    assert newest_valid(tmp_path) == (made, [])
    notes.rmdir()
    last = save(tmp_path, 30)
    assert checkpoints(tmp_path) == [last]


@pytest.mark.parametrize("rest", ["", '{"name": "b.png", "rea'])
def test_a_row_of_skipped_pairs_that_was_cut_short_takes_no_other_with_it(tmp_path: Path, rest: str) -> None:
    folder = RunFolder(tmp_path)
    row = json.dumps({"name": "a.png", "reason": "empty"}) + "\n"
    folder.skipped.write_text(row + rest)
    folder.clean()
    assert folder.skipped.read_text() == row
    folder.skipped.write_text(rest)
    folder.clean()
    assert folder.skipped.read_text() == ""


@pytest.mark.parametrize("rest", [b"\xff\xfe\x00", b"\0\0\0\0", b"null", b'"step"\n', b'{"step": 15, "l'])
def test_what_a_crash_left_of_a_row_of_metrics_is_dropped(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 5, "loss": 1.5}\n' + rest)
    MetricsFile(path, 5).close()
    assert path.read_text() == '{"step": 5, "loss": 1.5}\n'


def test_scores_that_are_not_finite_are_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.add(Validated(5, {"one": float("inf"), "two": float("nan"), "three": 0.5}))
    file.close()

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refused)
    assert row == {"step": 5, "one": None, "two": None, "three": 0.5}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_disk_that_is_full_when_metrics_are_written_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(MetricsFile):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._stream.close()
            self._stream = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115

    monkeypatch.setattr(loop, "MetricsFile", Full)
    with pytest.raises(DiskSpaceError, match="no room is left on its disk") as raised:
        run(tmp_path / "run", tiny_recipe(data, train__steps=2, train__log_every=1))
    assert "--resume" in str(raised.value.hint)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_disk_that_is_full_when_an_image_without_a_caption_is_listed_is_one_line(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for path in sorted(data.iterdir()):
            if path.name != "07.txt":
                tar.add(path, path.name)
    events = loop.train_recipe(tiny_recipe(tmp_path / "pairs.tar", train__steps=1), tmp_path / "run", device="cpu")
    assert any(isinstance(event, Started) for event in events)
    (tmp_path / "run" / "skipped.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskSpaceError, match="no room is left on its disk"):
        list(events)


@pytest.mark.parametrize("state", ["null", "[]", '{"sha256": {}}', '{"step": 30, "sha256": {}}', ""])
def test_a_checkpoint_whose_state_says_nothing_is_damaged(tmp_path: Path, state: str) -> None:
    made = save(tmp_path, 20)
    (save(tmp_path, 30, keep=2) / "state.json").write_text(state)
    found, [notice] = newest_valid(tmp_path)
    assert found == made
    assert "step-00000030 is damaged (state.json cannot be read)" in notice


def test_a_validation_that_an_interruption_left_out_is_made_up_for(data: Path, tmp_path: Path) -> None:
    changes = {"data__validation": str(data), "validation__every": 2, "train__checkpoint_every": 2}
    recipe = tiny_recipe(data, train__steps=4, train__log_every=2, **changes)

    def rows(name: str) -> list[tuple[int, bool]]:
        return [(row["step"], "loss" in row) for row in read_rows(tmp_path / name / "metrics.jsonl")]

    run(tmp_path / "straight", recipe)
    events = loop.train_recipe(recipe, tmp_path / "run", device="cpu")
    for event in events:
        if isinstance(event, CheckpointSaved):
            break
    events.close()
    assert rows("run") == [(2, True)]
    again = run(tmp_path / "run", recipe, resume=True)
    assert [type(event) for event in again if isinstance(event, StepDone | Validated)] == [
        Validated,
        StepDone,
        Validated,
    ]
    assert rows("run") == rows("straight") == [(2, True), (2, False), (4, True), (4, False)]
    scores = [read_rows(tmp_path / name / "metrics.jsonl")[1] for name in ("run", "straight")]
    assert scores[0] == scores[1]


def test_a_validation_that_came_about_is_not_repeated(data: Path, tmp_path: Path) -> None:
    changes = {"data__validation": str(data), "validation__every": 2, "train__checkpoint_every": 2}
    recipe = tiny_recipe(data, train__steps=4, train__log_every=2, **changes)
    events = loop.train_recipe(recipe, tmp_path / "run", device="cpu")
    assert any(isinstance(event, Validated) for event in events)
    assert isinstance(next(events), StepDone)  # until then the row of the validation is written
    events.close()
    again = run(tmp_path / "run", recipe, resume=True)
    assert [event.step for event in again if isinstance(event, Validated)] == [4]


@pytest.mark.parametrize(("call", "alpha"), [(1, None), (2, 0.5)], ids=["scores", "comparison"])
def test_ctrl_c_in_the_final_validation_is_no_failure_of_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, alpha: float | None
) -> None:
    """The first call gives the model's scores, the second one those of the start that it is compared with."""
    init = save_tiny_model(tmp_path / "init")
    changes = {"data__validation": str(data), "finetune__interpolate": alpha, "train__steps": 2}
    recipe = finetuning(data, init, **changes)
    real, calls = Validator.run, []

    def interrupted(self: Validator, *arguments: Any) -> dict[str, float]:
        calls.append(None)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "run", interrupted)
        with pytest.raises(Interrupted, match="stopped in the final validation") as raised:
            run(tmp_path / "run", recipe)
    assert raised.value.hint == "the same command with --resume adds them"
    assert len(calls) == call
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "interpolation.json").exists()
    finished = run(tmp_path / "run", recipe, resume=True)[-1]
    assert isinstance(finished, Finished)
    assert "retrieval/image_to_text/recall_1" in finished.metrics
    assert (tmp_path / "run" / "interpolation.json").exists() == (alpha is not None)


@pytest.mark.parametrize("left", ["recipe", "checkpoints"])
def test_a_run_that_was_killed_as_it_began_can_begin_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Before its recipe had its name, or right behind that."""

    class KilledError(BaseException):
        pass

    def killed(*arguments: object, **options: object) -> None:
        raise KilledError

    recipe = tiny_recipe(data, train__steps=1)
    with monkeypatch.context() as patch:
        if left == "recipe":
            patch.setattr(run_folder, "replacing", killed)
        else:
            real = Path.mkdir
            patch.setattr(Path, "mkdir", lambda self, *a, **o: (killed if self.name == left else real)(self, *a, **o))
        with pytest.raises(KilledError):
            run(tmp_path / "run", recipe)
    if left == "recipe":
        (tmp_path / "run" / ".recipe.json.cloob-0123abcd.partial").write_text("{")
    assert isinstance(run(tmp_path / "run", recipe, resume=left != "recipe")[-1], Finished)
    assert list((tmp_path / "run").glob(".*")) == []


def test_fp16_on_a_processor_is_refused_instead_of_ignored(data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(data, train__precision="fp16")
    with pytest.raises(DeviceError, match="cpu does not train in fp16"):
        run(tmp_path / "run", recipe)
    with pytest.raises(DeviceError, match="cpu does not train in fp16"):
        dry_run(recipe, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "key", ["train__epochs", "optimizer__learning_rate", "objective__inv_tau", "augment__crop_ratio"]
)
def test_numbers_of_a_recipe_are_finite(key: str, value: float) -> None:
    changes = {key: [1.0, value] if "ratio" in key else value}
    with pytest.raises(RecipeError, match=key.replace("__", ".")):
        parse(Recipe, settings("data", **changes), "r.toml", RecipeError)


def test_a_seed_that_is_too_large_is_a_wrong_key(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'seed'"):
        parse(Recipe, settings(data, seed=2**64), "r.toml", RecipeError)
    run(tmp_path / "run", tiny_recipe(data, seed=2**64 - 1, train__steps=1))


def test_a_single_pair_to_validate_on_is_too_few(data: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    for suffix in (".png", ".txt"):
        (one / f"00{suffix}").write_bytes((data / f"00{suffix}").read_bytes())
    with pytest.raises(DataError, match=r"data.validation holds 1 pair, which is too few"):
        run(tmp_path / "run", tiny_recipe(data, data__validation=str(one)))
    assert not (tmp_path / "run").exists()


def test_a_batch_of_which_nothing_can_be_read_names_what_cannot(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    for path in sorted(pairs.glob("*.png"))[1:]:
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"too few pairs of the batch of step 1 can be read; .*\.png: the file is empty"
    ):
        run(tmp_path / "run", tiny_recipe(pairs, train__batch_size=2, train__steps=40))


@pytest.mark.numeric
def test_slices_of_one_pair_train_where_some_cannot_be_read(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    for name in ("07", "12"):
        (pairs / f"{name}.png").write_bytes(b"")
    recipes = [tiny_recipe(pairs, train__steps=4, train__log_every=1, **changes) for changes in WHOLE_AND_SLICED]
    losses = [
        torch.tensor([event.loss for event in run(tmp_path / str(number), recipe) if isinstance(event, StepDone)])
        for number, recipe in enumerate(recipes)
    ]
    close(losses[1], losses[0], "rounding, enlarged by three steps of Adam", rtol=1e-4)


@pytest.mark.parametrize("kind", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_process_without_one_pair_of_a_batch_has_a_gradient_of_zero(tmp_path: Path, kind: dict[str, Any]) -> None:
    """As it may happen where many processes share a small batch: the others wait for its gradient."""
    model = build(open_model(save_tiny_model(tmp_path / "tiny", kind), "cpu").config, seed=0).train()
    side, length = model.config.vision.image_size, model.config.text.context_length
    images, texts = model(torch.zeros(0, 3, side, side), torch.zeros(0, length, dtype=torch.int64))
    assert images.shape == texts.shape == (0, model.config.embed_dim)
    (images.sum() + texts.sum()).backward()
    gradients = {name: tensor.grad for name, tensor in model.named_parameters() if name != "logit_scale"}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
