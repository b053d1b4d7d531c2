"""`train.image_sizes`: the size of a step's images follows from its number, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import equal_weights, run_weights, settings, tiny_recipe, write_pairs

from cloob_cli.errors import RecipeError
from cloob_cli.recipe import Recipe
from cloob_cli.strict_model import parse
from cloob_cli.training.schedules import image_size
from cloob_cli.training.step import TrainingStep

STAGES = [[0.0, 16], [0.4, 24], [0.8, 32]]
VISION = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2}
RESNET = {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}
TEXT = {"context_length": 8, "width": 16, "layers": 1, "heads": 2}
CROPS = {"augment__crop_scale": [0.6, 1.0], "augment__shift": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("sizes") / "pairs")


def recipe(data: Path, vision: dict = VISION, **changes: object) -> Recipe:
    changes = {"train__steps": 10, "train__checkpoint_every": 1, "train__keep_checkpoints": 20} | changes
    return tiny_recipe(data, model={"embed_dim": 16, "vision": vision, "text": TEXT}, **changes)


def test_sizes_by_the_number_of_the_step() -> None:
    stages = [(0.0, 32), (0.6, 48), (0.9, 64)]
    assert [image_size(stages, step, 10, 64) for step in range(12)] == [32] * 6 + [48] * 3 + [64] * 3
    assert image_size([], 0, 10, 64) == 64


@pytest.mark.parametrize("changes", [{}, {"data__in_memory": False}, {"data__in_memory": False, "data__workers": 1}])
def test_each_step_gets_images_of_its_size_and_resume_is_exact_in_every_stage(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    seen: list[tuple[int, int]] = []
    real = TrainingStep.__call__

    def recording(self: TrainingStep, batch, step: int):
        seen.append((step, batch.pixels.shape[-1]))
        assert batch.pixels.dtype == torch.uint8
        return real(self, batch, step)

    monkeypatch.setattr(TrainingStep, "__call__", recording)
    made = recipe(data, train__image_sizes=STAGES, **CROPS, **changes)
    whole = run_weights(made, tmp_path / "whole")
    assert seen == [(step, 16 if step < 4 else 24 if step < 8 else 32) for step in range(10)]
    for last in (2, 4, 6, 9) if not changes else (6,):
        run_weights(made, tmp_path / f"cut-{last}", last=last)
        assert equal_weights(run_weights(made, tmp_path / f"cut-{last}", resume=True), whole)


@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["vit", "resnet"])
def test_one_size_is_no_curriculum_to_the_bit(data: Path, tmp_path: Path, vision: dict) -> None:
    plain = run_weights(recipe(data, vision, **CROPS), tmp_path / "plain")
    assert equal_weights(
        run_weights(recipe(data, vision, **CROPS, train__image_sizes=[[0.0, 32]]), tmp_path / "one"), plain
    )
    if vision is VISION:
        stages = run_weights(recipe(data, vision, **CROPS, train__image_sizes=STAGES), tmp_path / "stages")
        assert not equal_weights(stages, plain)


def test_images_read_anew_and_kept_ones_are_the_same(data: Path, tmp_path: Path) -> None:
    for number, changes in enumerate((CROPS, {})):
        kept, anew = (
            run_weights(
                recipe(data, train__image_sizes=STAGES, data__in_memory=in_memory, **changes),
                tmp_path / f"{number}{in_memory}",
            )
            for in_memory in (True, False)
        )
        assert equal_weights(kept, anew)


def test_without_crops_a_smaller_image_is_the_model_s_image_resized(data: Path, tmp_path: Path) -> None:
    from cloob_cli.data.loader import PairLoader
    from cloob_cli.data.pairs import open_pairs
    from cloob_cli.data.preprocess import Preprocess
    from cloob_cli.data.tokenizer import clip_tokenizer
    from cloob_cli.recipe import AugmentSection, DataSection

    source, preprocess = open_pairs(DataSection(train=str(data))), Preprocess(32)
    options: dict = {"batch_size": 16, "seed": 0, "workers": 0}
    for in_memory in (True, False):
        loader = PairLoader(
            source, None, clip_tokenizer(), preprocess, AugmentSection(), in_memory=in_memory, **options
        )
        small, full = list(loader.batches(0, 2, lambda number: 24 if number == 2 else 32))
        assert full.pixels.shape == (16, 3, 32, 32)
        for pixels, index in zip(small.pixels, small.indices.tolist(), strict=True):
            crop = Image.fromarray(preprocess.crop(source.image(index))).resize((24, 24), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(crop))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([[0.0, 16], [0.5, 24]], "the last of train.image_sizes must be model.vision.image_size, 32"),
        ([[0.0, 12], [0.5, 32]], "multiples of 8 up to 32, not 12"),
        ([[0.0, 40], [0.5, 32]], "multiples of 8 up to 32, not 40"),
        ([[0.1, 16], [0.5, 32]], "fractions that rise from 0"),
        ([[0.0, 16], [0.5, 24], [0.5, 32]], "fractions that rise from 0"),
        ([[0.0, 16], [1.0, 32]], "stay below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: list, said: str) -> None:
    given = settings("unused", model={"embed_dim": 16, "vision": VISION, "text": TEXT}, train__image_sizes=sizes)
    with pytest.raises(RecipeError, match=said):
        parse(Recipe, given, "recipe", RecipeError)
