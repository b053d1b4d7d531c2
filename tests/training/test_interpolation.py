"""Weights between the start and the end of a run: what is saved, what is compared, and `cloob zoo blend`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import cloob_here
from finetune import finetuning
from margins import close
from safetensors.torch import load_file
from tiny_model import RESNET, VIT, save_tiny_model
from tiny_run import equal_weights, write_class_folders, write_pairs

from cloob_cli.checkpoint.folder import read_config
from cloob_cli.core.blending import blended
from cloob_cli.training import loop
from cloob_cli.training.events import Blended, Notice, Validated

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, labeled images, a model, and `run`: fine-tuned from it, three tenths of the way."""
    folder = tmp_path_factory.mktemp("interpolation")
    data, init = write_pairs(folder / "pairs"), save_tiny_model(folder / "init", RESNET)
    classes = write_class_folders(folder / "classes")
    changes = {"train__batch_norm": "batch", "train__ema": 0.5, "train__freeze": ["text.layers"]}
    changes |= {"data__validation": str(data), "validation__zero_shot": [str(classes)]}
    recipe = finetuning(data, init, finetune__interpolate=0.3, **changes)
    events = list(loop.train_recipe(recipe, folder / "run", device="cpu"))
    (folder / "events.json").write_text(
        json.dumps([[e.alpha, e.metrics, e.chosen] for e in events if isinstance(e, Blended)])
    )
    return folder


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_saved_weights_are_on_the_way(place):
    start, end, saved = (model(place / "run" / name) for name in ("start", "end", "model"))
    ema = load_file(place / "run" / "checkpoints" / "step-00000010" / "ema.safetensors")
    assert equal_weights(end, ema)
    assert equal_weights(start, model(place / "init"))
    for name, tensor in saved.items():
        if tensor.is_floating_point():
            expected = 0.7 * start[name].double() + 0.3 * end[name].double()
            close(tensor.double(), expected, "float32's rounding of one sum", rtol=1e-6, atol=1e-7)
        if name.startswith("transformer."):
            assert torch.equal(tensor, start[name])
        if name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, end[name])


def test_every_alpha_is_scored_and_the_chosen_one_is_the_model(place):
    rows = json.loads((place / "events.json").read_text())
    assert [row[0] for row in rows] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert [row[0] for row in rows if row[2]] == [0.3]
    stored = json.loads((place / "run" / "interpolation.json").read_text())
    assert stored == [{"alpha": alpha, **metrics} for alpha, metrics, _ in rows]
    assert {"retrieval/image_to_text/recall_1", "zero_shot/classes/top1"} <= stored[0].keys()
    config = read_config(place / "run" / "model")
    assert {"alpha": 0.3} | {k: v for k, v in config.metrics.items() if k != "loss"} == stored[3]
    card = (place / "run" / "model" / "README.md").read_text()
    assert "zero_shot/classes/top1" in card
    assert stored[0] != stored[10]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_score_as_models_of_their_own(place, tmp_path, alpha):
    """A run of learning rate 0 from the start, and from the end, validates what the comparison saw there."""
    source = place / "run" / ("start" if alpha == 0 else "end")
    changes = {"data__validation": str(place / "pairs"), "validation__zero_shot": [str(place / "classes")]}
    recipe = finetuning(place / "pairs", source, optimizer__learning_rate=0, train__steps=1, **changes)
    [scores] = [
        e.metrics for e in loop.train_recipe(recipe, tmp_path / "run", device="cpu") if isinstance(e, Validated)
    ]
    stored = json.loads((place / "run" / "interpolation.json").read_text())[round(10 * alpha)]
    assert stored == {"alpha": alpha, **scores}


def test_without_anything_to_score_by_the_mean_is_saved_and_told(place, tmp_path):
    recipe = finetuning(place / "pairs", place / "init", finetune__interpolate=0.5, train__steps=2)
    events = list(loop.train_recipe(recipe, tmp_path / "run", device="cpu"))
    said = [e.text for e in events if isinstance(e, Notice)]
    assert any(text.startswith("finetune.interpolate has nothing to compare by") for text in said)
    start, end, saved = (model(tmp_path / "run" / name) for name in ("start", "end", "model"))
    assert not equal_weights(start, saved)
    assert equal_weights(saved, blended(start, end, 0.5))


def test_a_blend_is_exact_at_its_ends_and_where_both_agree():
    one, other = {"a": torch.randn(50), "b": torch.ones(3)}, {"a": torch.randn(50) * 1e6, "b": torch.ones(3)}
    assert equal_weights(blended(one, other, 0.0), one)
    assert equal_weights(blended(one, other, 1.0), other)
    assert torch.equal(blended(one, other, 0.37)["b"], one["b"])


def test_the_command_shows_the_table_and_blends_later(place, tmp_path):
    text = f"""name = "x"\n[model]\ninit = "{place / "init"}"\n[data]\ntrain = "{place / "pairs"}"\nworkers = 0\n
validation = "{place / "pairs"}"\n[train]\nsteps = 2\nbatch_size = 16\n
precision = "fp32"\n[finetune]\ninterpolate = 1\n"""
    (tmp_path / "x.toml").write_text(text)
    done = cloob_here("train", "x.toml", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Path('runs', 'x', 'model')}\n"
    table = done.stderr[done.stderr.index("alpha (0 is the start") :].splitlines()[:12]
    assert [line.split()[0] for line in table[1:]] == [f"{number / 10:.3g}" for number in range(11)]
    assert table[11].endswith("saved")
    run = tmp_path / "runs" / "x"
    done = cloob_here("zoo", "blend", run / "start", run / "end", "--alpha", "0.25", "-o", "between", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "between\n"), done.stderr
    assert equal_weights(model(tmp_path / "between"), blended(model(run / "start"), model(run / "end"), 0.25))
    assert read_config(tmp_path / "between").source == {"blend": ["start", "end"], "alpha": 0.25}


@pytest.mark.parametrize(
    ("second", "alpha", "said"),
    [
        ("other", "0.5", "init and other differ in vision.kind"),
        ("words", "0.5", "init and words differ in text.vocab_size"),
        ("init", "1.5", "alpha is 1.5, not between 0 (all of init) and 1"),
        ("nothing", "0.5", "unknown model 'nothing'"),
    ],
)
def test_what_cannot_be_blended(place, tmp_path, second, alpha, said):
    save_tiny_model(place / "other", VIT)
    text = {"vocab_size": 541, "context_length": 12, "width": 32, "layers": 1, "heads": 2}
    save_tiny_model(place / "words", RESNET, text=text)
    done = cloob_here("zoo", "blend", "./init", f"./{second}" if second != "nothing" else second, "--alpha", alpha,
                      "-o", tmp_path / "between", cwd=place)  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr.replace("\n", " ")
    assert not (tmp_path / "between").exists()
