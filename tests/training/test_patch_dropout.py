"""`train.patch_dropout`: which patches the blocks see, and that nothing else depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from margins import within
from tiny_run import equal_weights, run_weights, settings, tiny_recipe, write_pairs

from cloob_cli.core.model_config import VisionConfig
from cloob_cli.core.transformer import VisionTransformer
from cloob_cli.errors import RecipeError
from cloob_cli.recipe import Recipe
from cloob_cli.strict_model import parse

MODEL = {
    "embed_dim": 16,
    "vision": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2},
    "text": {"context_length": 8, "width": 16, "layers": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("patches") / "pairs")


def recipe(data: Path, **changes: object) -> Recipe:
    changes = {"train__steps": 10, "train__checkpoint_every": 1, "train__keep_checkpoints": 20} | changes
    return tiny_recipe(data, model=MODEL, **changes)


def tower() -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(VisionConfig.model_validate(MODEL["vision"]), 16)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.numeric
def test_the_blocks_see_the_class_token_and_a_random_half_of_the_patches() -> None:
    made = tower()
    made.patch_dropout = 0.5
    seen: list[torch.Tensor] = []
    made.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.randn(200, 3, 32, 32)
    made.eval()(pixels)
    made.train()(pixels)
    full, half = seen
    assert full.shape == (200, 17, 16)
    assert half.shape == (200, 9, 16)
    assert torch.equal(full[:, 0], half[:, 0])
    places = (half[:, 1:, None] == full[:, None, 1:]).all(-1)  # [image, kept, patch]
    assert bool((places.sum(2) == 1).all()), "what is kept is an image's patch at its own position"
    often = places.any(1).sum(0)
    # Each of 16 patches is kept in 100 of 200 images; the standard deviation is 7, so 35 is five of them.
    within((often - 100).abs().max(), 35, "five deviations")
    assert len({tuple(row) for row in places.any(1).tolist()}) > 150


def test_in_evaluation_and_at_zero_all_patches_are_seen() -> None:
    made, pixels = tower(), torch.randn(4, 3, 32, 32)
    expected = made.eval()(pixels)
    made.patch_dropout = 0.75
    assert torch.equal(made(pixels), expected)
    made.patch_dropout = 0.0
    state = torch.get_rng_state()
    assert torch.equal(made.train()(pixels), expected)
    assert torch.equal(torch.get_rng_state(), state), "no random number is drawn"


def test_a_dropped_patch_has_no_influence_and_no_gradient() -> None:
    made = tower().train()
    made.patch_dropout = 0.9
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    torch.manual_seed(3)
    made(pixels).sum().backward()
    assert pixels.grad is not None
    touched = pixels.grad.abs().sum(1).unfold(1, 8, 8).unfold(2, 8, 8).sum((-1, -2)) > 0
    assert int(touched.sum()) == 2  # of 16, a tenth rounded


def test_zero_gives_the_weights_of_a_run_without_it_and_half_gives_others(data: Path, tmp_path: Path) -> None:
    plain = run_weights(recipe(data), tmp_path / "plain")
    assert equal_weights(run_weights(recipe(data, train__patch_dropout=0.0), tmp_path / "zero"), plain)
    half = run_weights(recipe(data, train__patch_dropout=0.5), tmp_path / "half")
    assert not equal_weights(half, plain)
    assert equal_weights(
        run_weights(recipe(data, train__patch_dropout=0.5, data__in_memory=False), tmp_path / "again"), half
    )


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_resume_is_exact_while_patches_are_dropped_and_after(
    data: Path, tmp_path: Path, micro_batch_size: int | None
) -> None:
    made = recipe(
        data, train__patch_dropout=0.5, train__patch_dropout_until=0.6, train__micro_batch_size=micro_batch_size
    )
    whole = run_weights(made, tmp_path / "whole")
    for last in (3, 8):
        run_weights(made, tmp_path / f"cut-{last}", last=last)
        assert equal_weights(run_weights(made, tmp_path / f"cut-{last}", resume=True), whole)


def test_the_last_steps_see_all_patches(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = VisionTransformer.forward

    def recording(self: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
        hook = self.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        try:
            return real(self, pixels)
        finally:
            hook.remove()

    monkeypatch.setattr(VisionTransformer, "forward", recording)
    run_weights(recipe(data, train__patch_dropout=0.75, train__patch_dropout_until=0.6), tmp_path / "run")
    assert seen[:10] == [5] * 6 + [17] * 4  # what comes after them is the finished model's


def test_a_resnet_has_no_patches() -> None:
    vision = {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}
    given = settings("unused", model=MODEL | {"vision": vision}, train__patch_dropout=0.5)
    with pytest.raises(RecipeError, match="a resnet has no patches"):
        parse(Recipe, given, "recipe", RecipeError)
