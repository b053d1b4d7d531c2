"""`train.captions_per_image`: the mean loss of the draws, in one piece, in slices, on two processes, and resumed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from command_line import cloob, environment
from launched import TWO_PROCESSES
from margins import EPS, close, within
from safetensors.torch import load_file
from tiny_run import tiny_recipe, write_pairs, write_recipe

from cloob_cli.core.loss import cloob_loss
from cloob_cli.core.model import build
from cloob_cli.data.batch import PairBatch
from cloob_cli.data.preprocess import normalize
from cloob_cli.training import loop
from cloob_cli.training.events import CheckpointSaved
from cloob_cli.training.metrics_file import read_rows
from cloob_cli.training.new_model import model_config
from cloob_cli.training.processes import start_accelerator, start_processes
from cloob_cli.training.step import TrainingStep


def several_captions(folder: Path) -> Path:
    """The usual pairs with one to three captions each."""
    write_pairs(folder)
    for number, path in enumerate(sorted(folder.glob("*.txt"))):
        text = path.read_text(encoding="utf-8").strip()
        captions = [text, f"a picture of {text}", f"{text} drawn"][: 1 + number % 3]
        path.write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


def parameters_after(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.numeric
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_the_loss_and_its_gradient_are_means_over_the_draws(micro_batch_size: int | None) -> None:
    recipe = tiny_recipe(
        "unused", objective__mask_equal_captions=True, objective__hopfield_warmup=0.0, train__captions_per_image=3,
        optimizer__gradient_clip=None, train__micro_batch_size=micro_batch_size,
    )  # fmt: skip
    config = model_config(recipe, 600)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 599, (8, 3, 8), generator=generator)
    tokens[..., -1] = 599
    ids = torch.randint(0, 5, (8, 3), generator=generator)

    plain = build(config, 0)
    images = plain.encode_image(normalize(pixels, config.preprocess))
    losses = [cloob_loss(images, plain.encode_text(tokens[:, k]), 30.0, 14.3, caption_ids=ids[:, k]) for k in range(3)]
    expected = sum(losses) / 3
    expected.backward()

    model = build(config, 0)
    model.logit_scale.requires_grad_(False)
    start_processes(torch.device("cpu"))  # whatever an earlier test has left of Accelerate's state goes
    step = TrainingStep(
        start_accelerator(torch.device("cpu"), "fp32"), model, recipe.objective, recipe.optimizer, recipe.train,
        precision="fp32", steps=10, local_batch_size=8, seed=0,
    )  # fmt: skip
    kept = {}
    step.optimizer.register_step_pre_hook(
        lambda *_: kept.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    )
    loss, _ = step(PairBatch(pixels, tokens, torch.arange(8), ids), 5)
    close(loss.item(), expected.item(), "float32: logits of 30, rounded a few times", atol=4 * 30 * EPS)
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            error = torch.linalg.vector_norm(kept[name] - parameter.grad)
            # float32 sums in another order; the same bound as for slices of a batch.
            within(error, 1e-5 * torch.linalg.vector_norm(parameter.grad) + 1e-7, "docs/loss.md: 1e-5 in float32")


@pytest.mark.parametrize("changes", [{}, {"train__micro_batch_size": 5, "data__in_memory": False}])
def test_a_resumed_run_with_several_captions_ends_with_the_same_bits(tmp_path: Path, changes: dict) -> None:
    data = several_captions(tmp_path / "pairs")
    recipe = tiny_recipe(data, train__captions_per_image=2, train__steps=12, train__checkpoint_every=5, **changes)
    list(loop.train_recipe(recipe, tmp_path / "whole", device="cpu"))
    events = loop.train_recipe(recipe, tmp_path / "cut", device="cpu")
    next(event for event in events if isinstance(event, CheckpointSaved))
    events.close()  # type: ignore[attr-defined]
    list(loop.train_recipe(recipe, tmp_path / "cut", device="cpu", resume=True))
    one, two = parameters_after(tmp_path / "whole"), parameters_after(tmp_path / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)
    list(loop.train_recipe(tiny_recipe(data, train__steps=12, **changes), tmp_path / "single", device="cpu"))
    assert not torch.equal(parameters_after(tmp_path / "single")["text_projection"], one["text_projection"])


@pytest.mark.slow
@pytest.mark.numeric
def test_two_processes_train_like_one_with_several_captions(tmp_path: Path) -> None:
    several_captions(tmp_path / "pairs")
    changes = {"train__steps": 8, "train__log_every": 1, "train__captions_per_image": 3, "train__batch_size": 15}
    changes |= {"objective__mask_equal_captions": True, "train__micro_batch_size": 3}
    write_recipe(tmp_path / "several.toml", "pairs", **changes)
    one = cloob("train", "several.toml", "--out", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = subprocess.run(
        [*TWO_PROCESSES, "train", "several.toml", "--device", "cpu", "--out", "two"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    rows = [read_rows(tmp_path / out / "metrics.jsonl") for out in ("one", "two")]
    for name in ("loss", "gradient_norm"):
        values = [[row[name] for row in run if name in row] for run in rows]
        # As for one caption: sums are added in another order, and eight steps of Adam enlarge that.
        close(values[0], values[1], "rounding, enlarged by eight steps of Adam", rtol=2e-4)
