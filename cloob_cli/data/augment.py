"""Random changes of training images.

Every change is decided by the sample's own random numbers (`order.uniforms`), so an image's augmentation does not
depend on what else is in its batch. Crops are cut image by image with Pillow; everything after them is done for
a whole batch at once, on the CPU or on the device where the images are kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from cloob_cli.data.random_numbers import further_uniforms
from cloob_cli.recipe import AugmentSection

# What each of a sample's random numbers decides. Only append: another order is another training run.
DRAWS = (
    "caption", "crop_area", "crop_ratio", "crop_x", "crop_y", "shift_x", "shift_y", "flip",
    "brightness", "contrast", "saturation", "grayscale", "invert",
)  # fmt: skip

_CHANGES = ("shift", "flip", "color_jitter", "grayscale", "invert")
_CROP_TRIES = 10  # as many as torchvision makes
_IN_CACHE = 64  # images that a CPU changes at a time
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's conversion to grayscale


def draw(uniforms: np.ndarray, name: str) -> np.ndarray:
    """One column of `order.uniforms(..., len(DRAWS))` by name -> float64 [B] in [0, 1)."""
    return uniforms[:, DRAWS.index(name)]


def crops(augment: AugmentSection) -> bool:
    """True where random crops are asked for."""
    return augment.crop_scale != (1.0, 1.0)


def changes_images(augment: AugmentSection) -> bool:
    """True where an image is not the same every time it is seen."""
    return crops(augment) or any(getattr(augment, name) for name in _CHANGES)


def crop_boxes(sizes: np.ndarray, uniforms: np.ndarray, augment: AugmentSection) -> np.ndarray:
    """Draw boxes: a fraction of the area in `crop_scale`, a ratio of the sides in `crop_ratio` (its logarithm even).

    By torchvision's rule: of ten such crops the first that fits into its image is taken, at an even place; where none
    fits, the largest crop at the center whose ratio is within `crop_ratio`, which may be all of it. Unlike there,
    edges are not whole pixels, since the image may have been made smaller before.

    Args:
        sizes: float [B, 2], widths and heights in pixels.

    Returns:
        float64 [B, 4]: left, top, right, bottom.
    """
    width, height = (sizes[:, [axis]].astype(np.float64) for axis in (0, 1))
    low, high = augment.crop_scale
    area = width * height * (low + (high - low) * _tries(draw(uniforms, "crop_area")))
    log_low, log_high = (math.log(ratio) for ratio in augment.crop_ratio)
    ratio = np.exp(log_low + (log_high - log_low) * _tries(draw(uniforms, "crop_ratio")))
    largest = np.clip(width / height, *augment.crop_ratio)
    widths = np.concatenate([np.sqrt(area * ratio), np.minimum(width, height * largest)], axis=1)
    heights = np.concatenate([np.sqrt(area / ratio), np.minimum(height, width / largest)], axis=1)
    taken = ((widths <= width) & (heights <= height)).argmax(axis=1)  # the last one always fits
    rows, random = np.arange(len(taken)), taken < _CROP_TRIES
    crop_width, crop_height = widths[rows, taken], heights[rows, taken]
    left = (width[:, 0] - crop_width) * np.where(random, draw(uniforms, "crop_x"), 0.5)
    top = (height[:, 0] - crop_height) * np.where(random, draw(uniforms, "crop_y"), 0.5)
    return np.stack([left, top, left + crop_width, top + crop_height], axis=1)


def _tries(uniform: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each of the tries of a crop -> float64 [B, 10]; the first is the given one."""
    return np.concatenate([uniform[:, None], further_uniforms(uniform, _CROP_TRIES - 1)], axis=1)


def resized_crop(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The box of an image, uint8 [H, W, 3], at `size` x `size` (bicubic, antialiased) -> uint8 [size, size, 3]."""
    bounds = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=bounds))


def resized_crops(images: torch.Tensor, boxes: np.ndarray, size: int) -> torch.Tensor:
    """`resized_crop` for a batch on its own device: two products with banded matrices an image.

    Equal to Pillow's result up to rounding (Pillow rounds between the two directions).

    Args:
        images: uint8 [B, H, W, 3].
        boxes: float64 [B, 4].

    Returns:
        uint8 [B, size, size, 3].
    """
    edges = torch.from_numpy(boxes).to(images.device, torch.float32)
    across = _resampling(edges[:, 0], edges[:, 2], images.shape[2], size)
    down = _resampling(edges[:, 1], edges[:, 3], images.shape[1], size)
    planes = images.permute(0, 3, 1, 2).float()
    resized = down[:, None] @ planes @ across.mT[:, None]
    return resized.permute(0, 2, 3, 1).round().clamp_(0, 255).to(torch.uint8)


def _resampling(start: torch.Tensor, stop: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """Rows of Pillow's bicubic kernel (a = -0.5, widened when shrinking), float32 [B, size, length]."""
    scale = ((stop - start) / size)[:, None, None]
    centers = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    x = ((torch.arange(length, device=start.device) + 0.5 - centers) / scale.clamp(min=1.0)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(dim=-1, keepdim=True)


def move(images: torch.Tensor, rows: torch.Tensor, uniforms: np.ndarray, augment: AugmentSection) -> torch.Tensor:
    """Select images of a cache, shifted and mirrored; pixels from beyond an edge repeat the edge.

    Args:
        images: uint8 [n, S, S, 3].
        rows: int64 [B], which of them.

    Returns:
        uint8 [B, S, S, 3].
    """
    if not augment.shift and not augment.flip:
        return images.index_select(0, rows)
    device, size = images.device, images.shape[1]
    across, down = (_shifts(draw(uniforms, name), augment.shift) for name in ("shift_x", "shift_y"))
    axis = np.arange(size)
    y = np.clip(axis + down[:, None], 0, size - 1)
    x = np.clip(axis + across[:, None], 0, size - 1)
    if augment.flip:
        x = np.where((draw(uniforms, "flip") < 0.5)[:, None], x[:, ::-1], x)
    first = (rows * size)[:, None] + torch.from_numpy(y).to(device)
    places = (first * size)[:, :, None] + torch.from_numpy(np.ascontiguousarray(x)).to(device)[:, None, :]
    return images.view(-1, 3).index_select(0, places.view(-1)).view(len(rows), size, size, 3)


def color_jitter(images: torch.Tensor, uniforms: np.ndarray, augment: AugmentSection) -> torch.Tensor:
    """Brightness, contrast, saturation, loss of color and inversion, as one affine map of RGB an image.

    Args:
        images: uint8 [B, S, S, 3].

    Returns:
        uint8 [B, S, S, 3]; images to which nothing happens keep their exact values.
    """
    gray = draw(uniforms, "grayscale") < augment.grayscale
    inverted = draw(uniforms, "invert") < augment.invert
    changed = np.nonzero(gray | inverted | (augment.color_jitter > 0))[0]
    if not len(changed):
        return images
    factors = np.stack([draw(uniforms, name)[changed] for name in ("brightness", "contrast", "saturation")], axis=1)
    factors = 1 + augment.color_jitter * (2 * factors - 1)
    factors[gray[changed], 2] = 0.0
    result = images.clone()
    at_once = _IN_CACHE if images.device.type == "cpu" else len(changed)
    for start in range(0, len(changed), at_once):
        part = changed[start : start + at_once]
        which = torch.from_numpy(part).to(images.device)
        selected = factors[start : start + at_once]
        result[which] = _color_jittered(images.index_select(0, which), selected, inverted[part])
    return result


def _color_jittered(images: torch.Tensor, factors: np.ndarray, inverted: np.ndarray) -> torch.Tensor:
    """uint8 [B, S, S, 3] with float64 [B, 3] factors of brightness, contrast and saturation -> the same shape.

    y = contrast * brightness * x + (1 - contrast) * brightness * mean luma(x); saturation * y + (1 - saturation) *
    luma(y); and 255 minus that where `inverted`.
    """
    brightness, contrast, saturation = torch.from_numpy(factors).float().unbind(1)
    # Sums of integers are exact, so an image's mean does not depend on how its batch is split over processes.
    totals = images.sum(dim=(1, 2), dtype=torch.int64).cpu().double()
    mean = (totals * _LUMA.double()).sum(dim=1).div(images.shape[1] * images.shape[2]).float()
    negative = torch.from_numpy(inverted)
    sign = torch.where(negative, -1.0, 1.0)
    mixing = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * _LUMA.expand(3, 3)
    matrix = ((brightness * contrast * sign)[:, None, None] * mixing).to(images.device)[..., None, None]
    rest = brightness * (1 - contrast) * mean * sign + torch.where(negative, 255.0, 0.0)
    rest = rest.to(images.device)[:, None, None]
    # Plane by plane: the same few operations for every image, whatever else is in the batch.
    red, green, blue = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).unbind(1)
    result = torch.empty_like(images)
    for row in range(3):
        plane = red * matrix[:, row, 0] + green * matrix[:, row, 1] + blue * matrix[:, row, 2] + rest
        result[..., row] = plane.round_().clamp_(0, 255)
    return result


def _shifts(uniform: np.ndarray, most: int) -> np.ndarray:
    shifts: np.ndarray = np.floor(uniform * (2 * most + 1)).astype(np.int64) - most
    return shifts
