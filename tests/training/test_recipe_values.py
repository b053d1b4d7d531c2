"""The update does as the recipe says: held against closed forms, through whole runs."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from margins import EPS, close, within
from PIL import Image
from safetensors.torch import load_file
from tiny_run import COLORS, PLACES, tiny_recipe, write_pairs

import cloob_cli
from cloob_cli.data.sample_order import hold_out
from cloob_cli.errors import NonFiniteLossError, UsageError
from cloob_cli.recipe import OptimizerSection
from cloob_cli.training.events import CheckpointSaved, Event, StepDone
from cloob_cli.training.loop import train_recipe
from cloob_cli.training.optimizer import build_optimizer

# Weights that stay what they were drawn as: no step is larger than this.
STILL: dict[str, Any] = {"optimizer__learning_rate": 1e-30, "optimizer__warmup_steps": 0}
ONE_STEP: dict[str, Any] = {"train__steps": 1, "train__log_every": 1, "objective__hopfield_warmup": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


def run(folder: Path, recipe: Any, *, resume: bool = False) -> list[Event]:
    return list(train_recipe(recipe, folder, device="cpu", resume=resume))


def run_until(folder: Path, recipe: Any, last: int) -> Path:
    """A run that is cut off right after the checkpoint of step `last`, which is returned."""
    events = train_recipe(recipe, folder, device="cpu")
    saved = next(event for event in events if isinstance(event, CheckpointSaved) and event.step == last)
    events.close()
    return saved.path


def steps_of(events: list[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.numeric
@pytest.mark.parametrize("clip", [0.25, 0.0])
def test_the_gradient_is_clipped_at_the_norm_that_the_recipe_names(data: Path, tmp_path: Path, clip: float) -> None:
    """With an epsilon far above any gradient Adam's first step is rate / epsilon times the gradient."""
    changes = ONE_STEP | {"optimizer__weight_decay": 0.0, "optimizer__gradient_clip": clip, "optimizer__epsilon": 1e6}
    run(tmp_path / "before", tiny_recipe(data, **changes | STILL))
    moving = {"optimizer__learning_rate": 1e6, "optimizer__warmup_steps": 0, "optimizer__schedule": "constant"}
    (step,) = steps_of(run(tmp_path / "after", tiny_recipe(data, **changes | moving)))
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    moved = torch.cat([(after[name] - before[name]).double().flatten() for name in before]).norm()
    assert step.gradient_norm > 0.5  # twice the bound: clipping shows
    close(float(moved), clip or step.gradient_norm, "20,000 weights of size 1, each rounded once", rtol=1e-3)


@pytest.mark.numeric
def test_adamw_is_the_textbook_s_with_the_recipe_s_numbers() -> None:
    """Three steps with given gradients against Loshchilov and Hutter's algorithm 2, written out."""
    rate, beta1, beta2, epsilon, decay = 0.1, 0.5, 0.75, 0.3, 0.2
    section = OptimizerSection(learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    layer = torch.nn.Linear(2, 1, bias=False).double()
    optimizer = build_optimizer(layer, section)
    weight = layer.weight.detach().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for number, gradient in enumerate(torch.tensor([[[0.3, -2.0]], [[1.5, 0.1]], [[-0.2, 0.4]]]).double(), 1):
        layer.weight.grad = gradient.clone()
        optimizer.step()
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        root = (square / (1 - beta2**number)).sqrt()
        weight = weight * (1 - rate * decay) - rate * mean / (1 - beta1**number) / (root + epsilon)
        close(layer.weight.detach(), weight, "a dozen operations in float64", rtol=64 * 2**-52)


@pytest.mark.numeric
@pytest.mark.parametrize("masked", [True, False])
def test_equal_captions_are_negatives_or_not_as_the_recipe_says(tmp_path: Path, masked: bool) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    for number, path in enumerate(sorted(pairs.iterdir())):
        if number >= 32:
            path.unlink()
        elif path.suffix == ".txt":
            path.write_text(f"{COLORS[number // 2 % 4]}\n", encoding="utf-8")
    changes = ONE_STEP | STILL | {"objective__name": "infoloob", "objective__mask_equal_captions": masked}
    (step,) = steps_of(run(tmp_path / "run", tiny_recipe(pairs, **changes)))

    model = cloob_cli.load(tmp_path / "run" / "model", device="cpu")
    captions = [path.read_text().strip() for path in sorted(pairs.glob("*.txt"))]
    pixels = torch.stack([model.preprocess(Image.open(path)) for path in sorted(pairs.glob("*.png"))])
    scores = (
        model.encode_image(pixels) @ model.encode_text(model.tokenize(captions)).T
    ).double() * model.config.inv_tau
    losses = []
    for i, caption in enumerate(captions):
        others = [j for j in range(16) if (captions[j] != caption if masked else j != i)]
        losses += [torch.logsumexp(scores[i, others], 0) - scores[i, i]]
        losses += [torch.logsumexp(scores[others, i], 0) - scores[i, i]]
    # Masked, 12 negatives are left of 15: the losses differ by about log(15 / 12) = 0.22.
    close(step.loss, float(torch.stack(losses).mean()), "unit rows in float32, times inv_tau", atol=1e-3)


@pytest.mark.numeric
def test_a_learned_temperature_goes_to_its_bound_and_no_further(data: Path, tmp_path: Path) -> None:
    """It starts below what suits the data and rises by a third (to 5.3 in 60 steps) where the bound allows it."""
    changes = {"objective__name": "infoloob", "objective__learn_inv_tau": True, "objective__inv_tau": 3.0}
    changes |= {"optimizer__learning_rate": 0.02, "train__batch_size": 32, "train__log_every": 1}
    highest = {}
    for bound, steps in ((3.2, 20), (100.0, 40)):
        recipe = tiny_recipe(data, **changes, objective__inv_tau_max=bound, train__steps=steps)
        highest[bound] = max(step.inv_tau for step in steps_of(run(tmp_path / f"{bound}", recipe)))
    assert highest[100.0] > 4.0
    within(abs(highest[3.2] / 3.2 - 1), 8 * EPS, "the bound as a logarithm in float32, and its exponential")


def test_the_scale_of_the_gradients_goes_on_where_the_checkpoint_left_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate scales gradients on GPUs alone; here it is given the scaler that a float16 run has there.

    A scale that no fresh scaler has is put into the checkpoint of step 10; the next checkpoint must have it.
    """
    original = Accelerator.__init__

    def with_scaler(self: Accelerator, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(Accelerator, "__init__", with_scaler)
    recipe = tiny_recipe(data)
    saved = run_until(tmp_path / "run", recipe, 10)
    stored = torch.load(saved / "optimizer.pt", weights_only=True)
    assert stored["scaler"]["_growth_tracker"] == 10
    stored["scaler"] |= {"scale": 64.0, "_growth_tracker": 100}
    torch.save(stored, saved / "optimizer.pt")
    state = json.loads((saved / "state.json").read_text())
    state["sha256"]["optimizer.pt"] = sha256((saved / "optimizer.pt").read_bytes()).hexdigest()
    (saved / "state.json").write_text(json.dumps(state))
    events = run(tmp_path / "run", recipe, resume=True)
    later = next(event for event in events if isinstance(event, CheckpointSaved) and event.step == 20)
    scaler = torch.load(later.path / "optimizer.pt", weights_only=True)["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (64.0, 110)


# One change in every section that decides what the weights become.
BINDING: dict[str, Any] = {
    "seed": 1,
    "train__batch_size": 8,
    "train__steps": 31,
    "train__micro_batch_size": 8,
    "train__precision": "bf16",
    "train__ema": 0.5,
    "train__captions_per_image": 2,
    "objective__inv_tau": 20.0,
    "objective__scale_hopfield": 8.0,
    "objective__mask_equal_captions": True,
    "optimizer__gradient_clip": 2.0,
    "optimizer__beta2": 0.9,
    "augment__flip": True,
    "data__validation_fraction": 0.25,
    "tokenizer": {"kind": "bpe", "vocab_size": 561},
}


def test_a_resumed_run_is_held_to_every_setting_that_decides_the_weights(data: Path, tmp_path: Path) -> None:
    run_until(tmp_path / "run", tiny_recipe(data), 10)
    for name, value in BINDING.items():
        with pytest.raises(UsageError, match="was made by another recipe"):
            run(tmp_path / "run", tiny_recipe(data, **{name: value}), resume=True)


def test_weights_that_are_not_finite_are_never_saved(data: Path, tmp_path: Path) -> None:
    """The last step's update breaks a weight although its loss and its gradient are numbers."""
    recipe = tiny_recipe(data, **ONE_STEP, optimizer__learning_rate=3e38, optimizer__warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match="the weights are no longer finite at step 1"):
        run(tmp_path / "run", recipe)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run" / "model").exists()


def test_what_is_held_out_does_not_reach_the_weights(tmp_path: Path) -> None:
    """Other images and captions in the places of the held-out pairs: the same weights. In another place: others."""
    recipes, names = {}, {}
    _, held_out = hold_out(64, 0.25)
    trained_on = sorted(set(range(64)) - set(held_out.tolist()))
    for name, changed in (("as it is", []), ("held out", held_out.tolist()), ("trained on", trained_on[:1])):
        pairs = write_pairs(tmp_path / name / "pairs")
        images, captions = sorted(pairs.glob("*.png")), sorted(pairs.glob("*.txt"))
        for number in changed:
            images[number].write_bytes(images[(number + 9) % 64].read_bytes())
            captions[number].write_text(f"something else {' '.join(PLACES)}", encoding="utf-8")
        recipes[name] = tiny_recipe(pairs, data__validation_fraction=0.25, train__steps=6)
        run(tmp_path / name / "run", recipes[name])
        names[name] = weights(tmp_path / name / "run")
    before = names["as it is"]
    assert all(torch.equal(before[name], tensor) for name, tensor in names["held out"].items())
    assert not torch.equal(before["visual.conv1.weight"], names["trained on"]["visual.conv1.weight"])


def test_validation_on_the_way_does_not_reach_the_weights(data: Path, tmp_path: Path) -> None:
    """A tower with BatchNorm, which computes something else in evaluation."""
    text = {"context_length": 8, "width": 16, "layers": 1, "heads": 2}
    vision = {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}
    changes = {"model": {"embed_dim": 16, "text": text, "vision": vision}, "data__validation": str(data)}
    for name, every in (("often", 1), ("once", 3)):
        run(tmp_path / name, tiny_recipe(data, **changes, validation__every=every, train__steps=3))
    often, once = weights(tmp_path / "often"), weights(tmp_path / "once")
    assert all(torch.equal(once[name], tensor) for name, tensor in often.items())
