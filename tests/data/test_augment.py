"""Random changes against Pillow, and against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from margins import close
from PIL import Image, ImageEnhance, ImageOps

from cloob_cli.data.augment import DRAWS, color_jitter, crop_boxes, crops, move, resized_crop, resized_crops
from cloob_cli.data.random_numbers import further_uniforms, uniforms
from cloob_cli.recipe import AugmentSection

SIZE = 16
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8))
ROWS = torch.arange(40)


def numbers(**fixed: float) -> np.ndarray:
    """Random numbers of 40 samples, some of them fixed by name."""
    draws = uniforms(3, 1, np.arange(40), len(DRAWS))
    for name, value in fixed.items():
        draws[:, DRAWS.index(name)] = value
    return draws


def test_nothing_asked_changes_nothing() -> None:
    section = AugmentSection()
    assert not crops(section)
    assert torch.equal(color_jitter(move(IMAGES, ROWS, numbers(), section), numbers(), section), IMAGES)


@pytest.mark.parametrize("flip", [False, True])
def test_shift_repeats_edges(flip: bool) -> None:
    draws = numbers()
    moved = move(IMAGES, ROWS.flip(0), draws, AugmentSection(shift=3, flip=flip))
    seen = set()
    for row, source in enumerate(IMAGES.flip(0).numpy()):
        x, y = (int(draws[row, DRAWS.index(name)] * 7) - 3 for name in ("shift_x", "shift_y"))
        seen |= {x, y}
        expected = np.pad(source, ((3, 3), (3, 3), (0, 0)), mode="edge")[3 + y : 3 + y + SIZE, 3 + x : 3 + x + SIZE]
        if flip and draws[row, DRAWS.index("flip")] < 0.5:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(moved[row].numpy(), expected)
    assert seen == {-3, -2, -1, 0, 1, 2, 3}


def test_flip_mirrors_half_of_the_images() -> None:
    moved = move(IMAGES, ROWS, numbers(), AugmentSection(flip=True))
    mirrored = [torch.equal(moved[row], IMAGES[row].flip(1)) for row in range(40)]
    same = [torch.equal(moved[row], IMAGES[row]) for row in range(40)]
    assert sum(mirrored) + sum(same) == 40
    assert 10 < sum(mirrored) < 30


@pytest.mark.parametrize(
    ("name", "enhancer"), [("brightness", ImageEnhance.Brightness), ("saturation", ImageEnhance.Color)]
)
@pytest.mark.parametrize("uniform", [0.1, 0.9])
def test_jitter_equals_pillow(name: str, enhancer: type, uniform: float) -> None:
    neutral = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5}
    changed = color_jitter(IMAGES, numbers(**neutral | {name: uniform}), AugmentSection(color_jitter=0.5))
    for row in range(5):
        expected = enhancer(Image.fromarray(IMAGES[row].numpy())).enhance(1 + 0.5 * (2 * uniform - 1))
        assert np.abs(changed[row].numpy().astype(int) - np.asarray(expected, dtype=int)).max() <= 1


def test_contrast_moves_values_from_or_to_the_mean() -> None:
    section = AugmentSection(color_jitter=1.0)
    fixed = {"brightness": 0.5, "saturation": 0.5}
    flat = color_jitter(IMAGES, numbers(contrast=0.0, **fixed), section).float()
    luma = (IMAGES.float() * torch.tensor([0.299, 0.587, 0.114])).sum(-1).mean(dim=(1, 2))
    assert (flat - luma[:, None, None, None]).abs().max() <= 0.51
    middle = color_jitter(IMAGES, numbers(contrast=0.25, **fixed), section).float()
    # Values are whole numbers: at most half of 1 is rounded off.
    assert (middle - (IMAGES.float() + luma[:, None, None, None]) / 2).abs().max() <= 0.51


def test_grayscale_and_invert_equal_pillow() -> None:
    gray = color_jitter(IMAGES, numbers(), AugmentSection(grayscale=1.0))
    inverted = color_jitter(IMAGES, numbers(), AugmentSection(invert=1.0))
    for row in range(5):
        image = Image.fromarray(IMAGES[row].numpy())
        expected = np.asarray(image.convert("L").convert("RGB"), dtype=int)
        assert np.abs(gray[row].numpy() - expected).max() <= 1
        np.testing.assert_array_equal(inverted[row].numpy(), np.asarray(ImageOps.invert(image)))


def test_shares_are_kept_to() -> None:
    changed = color_jitter(IMAGES, numbers(), AugmentSection(invert=0.25, grayscale=0.25))
    same = sum(torch.equal(changed[row], IMAGES[row]) for row in range(40))
    assert 12 < same < 33


def test_a_image_s_change_does_not_depend_on_its_batch() -> None:
    section = AugmentSection(shift=2, flip=True, color_jitter=0.4, grayscale=0.2, invert=0.2)
    many = IMAGES.repeat(5, 1, 1, 1)  # more than are changed at a time
    draws = uniforms(0, 0, np.arange(200), len(DRAWS))
    together = color_jitter(move(many, torch.arange(200), draws, section), draws, section)
    for row in range(0, 200, 23):
        one = draws[row : row + 1]
        assert torch.equal(color_jitter(move(many, torch.tensor([row]), one, section), one, section)[0], together[row])


def test_crop_boxes_lie_inside_and_have_the_asked_shape() -> None:
    n = 2000
    sizes = np.tile([[60, 60], [90, 40]], (n // 2, 1)).astype(float)
    draws = uniforms(0, 0, np.arange(n), len(DRAWS))
    boxes = crop_boxes(sizes, draws, AugmentSection(crop_scale=(0.3, 0.8), crop_ratio=(0.8, 1.25)))
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= sizes[:, 0] + 1e-9).all()
    assert (bottom <= sizes[:, 1] + 1e-9).all()
    square = sizes[:, 0] == 60
    fraction = ((right - left) * (bottom - top) / sizes.prod(axis=1))[square]
    ratio = ((right - left) / (bottom - top))[square]
    assert 0.3 <= fraction.min() < 0.32
    assert 0.78 < fraction.max() <= 0.8
    assert 0.8 <= ratio.min() < 0.82
    assert 1.22 < ratio.max() <= 1.25


def torchvisions_box(width: float, height: float, draws: np.ndarray, augment: AugmentSection) -> tuple[float, ...]:
    """RandomResizedCrop's rule for one image, with the sample's numbers for its random ones and without rounding."""

    def tries(name: str) -> list[float]:
        first = draws[DRAWS.index(name)]
        return [first, *further_uniforms(np.array([first]), 9)[0]]

    (low, high), (least, most) = augment.crop_scale, augment.crop_ratio
    for area_number, ratio_number in zip(tries("crop_area"), tries("crop_ratio"), strict=True):
        area = width * height * (low + (high - low) * area_number)
        ratio = math.exp(math.log(least) + (math.log(most) - math.log(least)) * ratio_number)
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = (draws[DRAWS.index(name)] for name in ("crop_x", "crop_y"))
            return (width - w) * x, (height - h) * y, (width - w) * x + w, (height - h) * y + h
    w, h = width, height
    if width / height < least:
        h = width / least
    elif width / height > most:
        w = height * most
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


@pytest.mark.numeric
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.3, 0.8), (0.08, 1.0)])
@pytest.mark.parametrize("size", [(240, 240), (320, 180), (180, 320), (300, 230), (900, 20)])
def test_crop_boxes_are_torchvisions(scale: tuple[float, float], size: tuple[int, int]) -> None:
    augment = AugmentSection(crop_scale=scale)
    draws = uniforms(1, 2, np.arange(300), len(DRAWS))
    boxes = crop_boxes(np.tile([size], (300, 1)), draws, augment)
    expected = [torchvisions_box(*size, row, augment) for row in draws]
    close(boxes, np.array(expected), "float64: numbers of up to 900", atol=1e-9)


@pytest.mark.numeric
def test_crops_keep_to_their_range_of_areas_or_are_centered() -> None:
    """The setting of the CLOOB paper: most single tries do not fit into a square, and none into 16:9."""
    augment = AugmentSection(crop_scale=(0.9, 1.0))
    n = 3000
    for size, whole in (((240, 240), 1.0), ((320, 180), 0.75)):
        draws = uniforms(0, 0, np.arange(n), len(DRAWS))
        left, top, right, bottom = crop_boxes(np.tile([size], (n, 1)), draws, augment).T
        fraction = (right - left) * (bottom - top) / (size[0] * size[1])
        fallen_back = np.isclose(fraction, whole)
        middle = np.stack([left + right, top + bottom])[:, fallen_back]
        close(middle - np.array(size)[:, None], np.zeros_like(middle), "float64: numbers of up to 320", atol=1e-9)
        assert (fraction[~fallen_back] >= 0.9).all()
        # A single try fits a square with probability 0.178 (the mean of -log(area)/log(4/3)), none of ten with 0.14.
        expected = 0.14 if whole == 1.0 else 1.0
        close(fallen_back.mean(), expected, "five deviations of a part of 3000", atol=5 * math.sqrt(0.14 * 0.86 / n))


@pytest.mark.numeric
def test_further_numbers_are_even_and_their_own() -> None:
    first = uniforms(0, 0, np.arange(5000), 1)[:, 0]
    more = further_uniforms(first, 3)
    assert more.shape == (5000, 3)
    np.testing.assert_array_equal(more[7:8], further_uniforms(first[7:8], 3))
    np.testing.assert_array_equal(more[:, :2], further_uniforms(first, 2))
    together = np.concatenate([first[:, None], more], axis=1)
    assert ((together >= 0) & (together < 1)).all()
    # Deviations of a mean of 5000 even numbers: 0.004; of a correlation: 0.014. Five of them are allowed.
    close(together.mean(axis=0), np.full(4, 0.5), "five deviations", atol=0.02)
    close(np.corrcoef(together.T), np.eye(4), "five deviations", atol=0.07)


def test_resized_crop_is_pillow_s() -> None:
    image = IMAGES[0].numpy()
    whole = resized_crop(image, np.array([0.0, 0, SIZE, SIZE]), SIZE)
    np.testing.assert_array_equal(whole, image)
    part = resized_crop(image, np.array([2.0, 4, 10, 12]), 8)
    np.testing.assert_array_equal(part, image[4:12, 2:10])


@pytest.mark.parametrize("size", [10, 16, 37])
def test_crops_of_a_batch_equal_pillow_s(size: int) -> None:
    smooth = torch.nn.functional.interpolate(IMAGES[:, :4, :4].permute(0, 3, 1, 2).float(), (24, 20), mode="bilinear")
    images = smooth.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous()
    sizes = np.tile([[20.0, 24.0]], (40, 1))
    boxes = crop_boxes(sizes, numbers(), AugmentSection(crop_scale=(0.4, 1.0)))
    batch = resized_crops(images, boxes, size)
    for row in range(40):
        expected = resized_crop(images[row].numpy(), boxes[row], size)
        assert np.abs(batch[row].numpy().astype(int) - expected.astype(int)).max() <= 2
