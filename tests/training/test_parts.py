"""The parts of training that have a known answer: weight average, metrics file, precision, recipe record, card."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from margins import EPS, close
from tiny_run import settings, tiny_recipe, write_pairs

from cloob_cli.checkpoint.card import trained_model_card
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.errors import DeviceError, Interrupted, MissingExtraError, RecipeError
from cloob_cli.training import precision, processes, report_window
from cloob_cli.training.build_run import choose_device, facts
from cloob_cli.training.checkpoints import checkpoints
from cloob_cli.training.data_split import open_data
from cloob_cli.training.ema import EMA
from cloob_cli.training.events import Started, StepDone, Validated
from cloob_cli.training.finish_run import recipe_record
from cloob_cli.training.interrupt import StopRequest, stop_on_signals
from cloob_cli.training.loss_curve import draw_loss_curve
from cloob_cli.training.metrics_file import MetricsFile, read_rows
from cloob_cli.training.new_model import model_config
from cloob_cli.training.report_window import Window
from cloob_cli.training.run_folder import differences

TEXT = {"context_length": 8, "width": 16, "layers": 2, "heads": 2}


def step_done(step: int, **changes: float) -> StepDone:
    values = dict.fromkeys(StepDone.__dataclass_fields__, 0.5) | {"step": step, "mechanism": {}} | changes
    return StepDone(**values)  # type: ignore[arg-type]


@pytest.mark.numeric
def test_the_average_follows_its_formula():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = EMA(model, decay=0.5)
    expected = model[0].weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model[0].weight.add_(step + 1.0)
            model[1].num_batches_tracked.add_(1)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    close(average.tensors["0.weight"], expected, "twelve averages in float32", rtol=8 * EPS)
    assert int(average.tensors["1.num_batches_tracked"]) == 12

    own = model[0].weight.detach().clone()
    with average.applied_to(model):
        close(model[0].weight.detach(), expected, "twelve averages in float32", rtol=8 * EPS)
    assert torch.equal(model[0].weight.detach(), own)


def test_metrics_of_a_lost_run_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    first.add(step_done(5))
    first.add(Validated(5, {"score": 0.25}))
    first.add(step_done(10, loss=math.nan))
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 15, "lo')  # cut off by a crash
    assert [row["step"] for row in read_rows(path)] == [5, 5, 10]
    assert read_rows(path)[2]["loss"] is None  # JSON has no not-a-number
    second = MetricsFile(path, 5)
    second.add(step_done(10))
    second.close()
    assert [(row["step"], row.get("score")) for row in read_rows(path)] == [(5, None), (5, 0.25), (10, None)]


def test_a_window_splits_its_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(report_window.time, "monotonic", lambda: now[0])
    window = Window()
    with window.waiting():
        now[0] += 2
    window.add(torch.tensor(3.0), torch.tensor(4.0), images=8)
    now[0] += 6
    with window.paused():
        now[0] += 100
    window.add(torch.tensor(5.0), torch.tensor(6.0), images=8)
    assert (window.seconds(), window.waited, window.images) == (8, 2, 16)
    assert (window.losses(), window.norms()) == ([3, 5], [4, 6])


def test_the_loss_curve_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError) as caught:
        draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert "report" in (caught.value.hint or "")


def test_precision_is_what_was_asked_or_what_was_measured(monkeypatch):
    cpu = torch.device("cpu")
    assert [precision.pick_precision(name, cpu) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    for ratio, expected in ((8.0, "bf16"), (1.2, "fp32"), (0.3, "fp32")):
        monkeypatch.setattr(precision, "bf16_speedup", lambda ratio=ratio: ratio)
        assert precision.pick_precision("auto", cpu) == expected


def test_a_precision_that_the_device_lacks_is_a_plain_error(monkeypatch):
    def refuses(**options):
        raise ValueError("not here")

    monkeypatch.setattr(processes, "Accelerator", refuses)
    with pytest.raises(DeviceError, match="mps does not train in fp16: not here"):
        processes.start_accelerator(torch.device("mps"), "fp16")


def test_bf16_speedup_is_a_ratio_of_times():
    assert 0 < precision.bf16_speedup(64) < 1000


def test_accelerates_cpu_flag_is_heeded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_device(None) == torch.device("cpu")


def test_an_early_stop_has_nothing_to_save():
    stop = StopRequest()
    stop.check()
    stop.requested = True
    with pytest.raises(Interrupted, match="before the first step"):
        stop.check()


def test_the_stored_recipe_names_no_folder_of_the_trainer():
    recipe = tiny_recipe(
        "/home/lovelace/secret/pairs",
        data__validation=["/home/lovelace/one.tar", "/home/ada/two.tar"],
        validation__zero_shot=["/home/lovelace/sets/flags"],
    )
    record = recipe_record(recipe)
    assert "lovelace" not in json.dumps(record)
    assert record["data"]["train"] == "pairs"
    assert record["data"]["validation"] == ["one.tar", "two.tar"]
    assert record["validation"]["zero_shot"] == ["flags"]


def test_scale_hopfield_is_stored_for_cloob_only():
    assert model_config(tiny_recipe("x"), 600).scale_hopfield == 14.3
    assert model_config(tiny_recipe("x", objective__name="clip"), 600).scale_hopfield is None
    assert model_config(tiny_recipe("x"), 600).text.vocab_size == 600


def test_a_vocabulary_is_the_tokenizers_and_another_size_is_an_error():
    assert model_config(tiny_recipe("x"), 555).text.vocab_size == 555  # few captions: fewer entries than asked for
    recipe = tiny_recipe("x", model={**settings("x")["model"], "text": {**TEXT, "vocab_size": 560}})
    assert model_config(recipe, 560).text.vocab_size == 560
    with pytest.raises(RecipeError, match="is 560, the tokenizer has 555"):
        model_config(recipe, 555)


def test_differences_of_recipes():
    one = tiny_recipe("x").model_dump(mode="json")
    two = tiny_recipe("x", train__log_every=1, data__workers=3, seed=4, train__ema=0.5).model_dump(mode="json")
    assert differences(one, two) == [("seed", 0, 4), ("train.ema", 0.0, 0.5)]


def test_processes_compare_their_data_by_its_fingerprint(tmp_path):
    recipe = tiny_recipe(write_pairs(tmp_path / "pairs"), data__validation_fraction=0.25)

    def found():
        data = open_data(recipe.data, 10)
        return facts(recipe, data, data.parts())

    here = found()
    assert (here["the number of training pairs"], here["the number of held-out pairs"]) == (48, 10)
    assert here == found()
    for suffix in (".png", ".txt"):
        (tmp_path / "pairs" / f"07{suffix}").rename(tmp_path / "pairs" / f"99{suffix}")
    there = found()
    assert [name for name in here if here[name] != there[name]] == ["the data's fingerprint"]


def test_checkpoints_are_ordered_by_step_and_nothing_else_counts(tmp_path):
    for name in ("step-00000900", "step-00001000", "step-1", ".step-00002000.partial", "step-100000000"):
        (tmp_path / name).mkdir()
    found = [path.name for path in checkpoints(tmp_path)]
    assert found == ["step-00000900", "step-00001000", "step-100000000"]


def test_the_card_tells_what_was_done(tmp_path: Path):
    config = ModelConfig.model_validate({
        "name": "tiny", "embed_dim": 16,
        "vision": {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2},
        "text": {"vocab_size": 600, "width": 16, "layers": 1, "heads": 2},
        "metrics": {"loss": 1.5, "zero_shot/flags/top1": 0.4321}, "recipe": {"seed": 7},
    })  # fmt: skip
    started = Started(30, 0, "cpu", "bf16", 1, 25_985, 1234, 56, 16, None)
    text = trained_model_card(config, "A test.", started, skipped=3, seconds=3725)
    parts = [
        "3 could not be read",
        "# tiny",
        "A test.",
        "25,985",
        "1,234 pairs",
        "3 could not be read",
        "in 1:02:05 on",
        "0.4321",
        '"seed": 7',
    ]
    assert [part for part in parts if part not in text] == []
    assert text.startswith("---\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_before_the_first_step_is_answered_and_interrupts_whatever_goes_on():
    told: list[str] = []

    def interrupted_work() -> None:
        with stop_on_signals(told.append):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(60)

    with pytest.raises(Interrupted, match="before the first step"):
        interrupted_work()
    assert [text.split(";")[0] for text in told] == ["stopping"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_are_answered_while_the_program_is_deep_in_compiled_code():
    """Python's own handlers wait for its end; the second signal, sent once the first is answered, ends the process."""
    code = textwrap.dedent(
        """
        import hashlib, os, signal, threading
        from cloob_cli.training.interrupt import stop_on_signals

        def answered(text):
            print(text.split(";")[0], flush=True)
            os.kill(os.getpid(), signal.SIGINT)

        with stop_on_signals(answered):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes
            print("done")
        """
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (130, "stopping\n"), result.stderr
