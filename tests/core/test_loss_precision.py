"""The tiled implementation in float32 and with bfloat16 products against the definition in float64; hard inputs."""

from __future__ import annotations

import pytest
import torch
from loss_checks import OBJECTIVES, alike, loss_and_gradient, relative_error, unit_rows, with_outlier
from margins import close, within
from narrow_steps import narrow
from torch.nn.functional import normalize

from cloob_cli.core import loss
from cloob_cli.core.loss.steps import Steps

pytestmark = [pytest.mark.usefixtures("small_tiles"), pytest.mark.numeric]

FLOAT64 = "docs/loss.md, Exactness: 1e-9 in float64"
FLOAT32 = "docs/loss.md, Exactness: 1e-5 in float32"
BFLOAT16 = "docs/loss.md, Exactness: a few units of bfloat16's rounding"
ROUNDING = 2**-8  # half a unit in the last place of a bfloat16 number of 1


def hopfield_limit(scale_hopfield: float, inv_tau: float) -> float:
    """The error allowed for a gradient in float32, as a fraction of its largest element.

    A score is rounded to half a unit in its last place, 4e-6 for scores of 64 to 128, and that enters the weights of a
    row as it is: beyond beta 8 and inv_tau 30 the error grows in proportion. Definition and tiles make it alike.
    """
    return 1e-5 * max(1.0, (3 * scale_hopfield + inv_tau) / 54)


def smaller_share(error: torch.Tensor, expected: torch.Tensor, absolute: float) -> tuple[float, float]:
    """An error and its limit: five units of bfloat16's rounding of its length, or `absolute` where that leaves more."""
    relative = float(error.norm()), 5 * ROUNDING * float(expected.norm())
    largest = float(error.abs().max()), absolute
    return min(relative, largest, key=lambda pair: pair[0] / max(pair[1], 1e-300))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [3, 50, 333])
def test_float32_gradients_are_within_1e_5(objective, n):
    x, y = alike(n, 48)[0], unit_rows(n, 48, 5).float().double()
    within(relative_error(x, y, objective=objective), 1e-5, FLOAT32)
    within(relative_error(x, y, objective=objective, inv_tau=100.0), 1e-5, FLOAT32)


@pytest.mark.parametrize("scale_hopfield", [1.0, 8.0, 15.0, 19.9, 30.0, 100.0])
def test_float32_gradients_are_within_1e_5_at_any_hopfield_scale(scale_hopfield):
    x, y = alike(200, 48)
    within(relative_error(x, y, scale_hopfield=scale_hopfield), 1e-5, FLOAT32)


HARD = {
    "all equal": (unit_rows(1, 48, 0).expand(60, -1), unit_rows(1, 48, 0).expand(60, -1)),
    "two points": (unit_rows(2, 48, 0).repeat(30, 1), unit_rows(2, 48, 1).repeat(30, 1)),
    "duplicated pairs": tuple(rows.repeat(2, 1) for rows in alike(100, 48)),
    "exact positives": (alike(100, 48)[0],) * 2,
    "opposites": (alike(100, 48)[0], -alike(100, 48)[0]),
    "narrow cone": tuple(normalize(unit_rows(1, 48, 9) + 0.1 * rows, dim=1) for rows in alike(100, 48)),
}


@pytest.mark.parametrize("scale_hopfield", [8.0, 14.3, 20.0])
@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("opposite", [False, True])
def test_a_row_far_from_all_others(scale_hopfield, spread, opposite):
    """Its exponentials are tiny beside all others'; what they have in common must not swallow them."""
    x, y = with_outlier(150, 48, spread, opposite)
    options = {"scale_hopfield": scale_hopfield}
    _, expected = loss_and_gradient(x, y, **options)
    _, exact = loss_and_gradient(x, y, implementation="tiled", **options)
    within((exact - expected).norm(), 1e-9 * expected.norm(), FLOAT64)
    _, definition = loss_and_gradient(x, y, torch.float32, **options)
    _, found = loss_and_gradient(x, y, torch.float32, "tiled", **options)
    # In a narrow cone the gradient is ill-conditioned: the definition in float32 is no nearer to it.
    allowed = max(1e-5 * float(expected.norm()), 4 * float((definition - expected).norm()))
    within(
        (found - expected).norm(),
        allowed,
        "1e-5 in float32, or four times the definition's own error",
    )
    _, coarse = loss_and_gradient(x, y, torch.float32, "tiled", precision="bf16", **options)
    within((coarse - expected).norm(), 6 * ROUNDING * expected.norm(), BFLOAT16)


def test_two_groups_far_apart():
    """So far that tiles lose precision at large scales: then the maximum of each row is subtracted."""
    x = normalize(
        unit_rows(1, 3, 0) * torch.tensor([1.0] * 19 + [-1.0] * 3)[:, None] + 0.05 * unit_rows(22, 3, 1), dim=1
    )
    y = normalize(x.roll(5, 0) + 0.3 * unit_rows(22, 3, 2), dim=1)
    for scale_hopfield in (8.0, 20.0, 100.0, 150.0):
        _, expected = loss_and_gradient(x, y, scale_hopfield=scale_hopfield)
        _, found = loss_and_gradient(x, y, implementation="tiled", scale_hopfield=scale_hopfield)
        within((found - expected).abs().max(), 1e-9 * max(1.0, float(expected.abs().max())), FLOAT64)


@pytest.mark.parametrize(("scale_hopfield", "inv_tau"), [(8.0, 30.0), (20.0, 100.0), (100.0, 30.0), (100.0, 100.0)])
@pytest.mark.parametrize("n", [100, 200])
def test_opposites_of_many_seeds_in_float32(n, scale_hopfield, inv_tau):
    """Scores down to -100 and no positive that outweighs them: the largest errors that were found."""
    options = {"scale_hopfield": scale_hopfield, "inv_tau": inv_tau}
    for seed in range(8):
        x = unit_rows(n, 64, seed).float().double()
        _, expected = loss_and_gradient(x, -x, **options)
        _, found = loss_and_gradient(x, -x, torch.float32, "tiled", **options)
        worst, largest = (found - expected).abs().max(), float(expected.abs().max())
        within(worst, hopfield_limit(scale_hopfield, inv_tau) * largest, FLOAT32)


def test_few_rows_in_float64():
    """The worst case for the tiles: two or three points, large scores, and a gradient that all but vanishes."""
    for n, d, seed, scale_hopfield in [(2, 2, 4, 149.0), (2, 3, 147, 100.0), (2, 8, 17, 100.0), (3, 2, 38, 20.0)]:
        x, y = unit_rows(n, d, seed), unit_rows(n, d, seed + 1)
        options = {"scale_hopfield": scale_hopfield, "inv_tau": 100.0}
        _, expected = loss_and_gradient(x, y, **options)
        _, found = loss_and_gradient(x, y, implementation="tiled", **options)
        within((found - expected).abs().max(), 1e-9 * max(1.0, float(expected.abs().max())), FLOAT64)


# Objectives with scale_hopfield: the others have no retrieval.
SCALES = [("cloob", 0.1), ("cloob", 8.0), ("cloob", 100.0), ("infoloob", 8.0), ("clip", 8.0), ("clip_hopfield", 8.0)]


@pytest.mark.parametrize(("objective", "scale_hopfield"), SCALES)
@pytest.mark.parametrize("inv_tau", [1.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs_in_float32(objective, inv_tau, scale_hopfield, name):
    x, y = (rows.float().double() for rows in HARD[name])
    options = {"objective": objective, "inv_tau": inv_tau, "scale_hopfield": scale_hopfield}
    expected_loss, expected = loss_and_gradient(x, y, **options)
    loss, gradient = loss_and_gradient(x, y, torch.float32, "tiled", **options)
    # Where duplicates make the loss vanish it is the difference of logits as large as inv_tau.
    close(loss, expected_loss, "rounding of logits", rtol=1e-5, atol=max(1, inv_tau / 30) * 1e-5)
    limit = hopfield_limit(scale_hopfield if objective == "cloob" else 0.0, inv_tau)
    worst = (gradient - expected).abs().max()
    within(worst, max(limit * float(expected.abs().max()), 1e-6), f"{FLOAT32}; 1e-6 where the gradient vanishes")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [3, 50, 333])
@pytest.mark.parametrize("inv_tau", [1.0, 10.0, 30.0, 100.0])
def test_bfloat16_gradients_are_within_four_units_of_its_rounding(objective, n, inv_tau):
    x, y = alike(n, 192)[0], unit_rows(n, 192, 5).float().double()  # the error of a score falls as 1 / sqrt(width)
    within(relative_error(x, y, precision="bf16", objective=objective, inv_tau=inv_tau), 4 * ROUNDING, BFLOAT16)


@pytest.mark.parametrize("scale_hopfield", [0.1, 1.0, 8.0, 15.0, 20.5, 100.0])
def test_bfloat16_gradients_at_any_hopfield_scale(scale_hopfield):
    x, y = alike(200, 48)
    within(relative_error(x, y, precision="bf16", scale_hopfield=scale_hopfield), 5 * ROUNDING, BFLOAT16)


@pytest.mark.parametrize(("objective", "scale_hopfield"), SCALES)
def test_operands_that_are_bfloat16_tensors(objective, scale_hopfield, monkeypatch):
    """As on CUDA, where operands are no float32 tensors with rounded numbers."""
    monkeypatch.setattr(loss, "Steps", narrow(Steps))
    x, y = alike(50, 192)[0], unit_rows(50, 192, 5).float().double()
    ids = torch.arange(50) // 2
    options = {"objective": objective, "scale_hopfield": scale_hopfield, "caption_ids": ids}
    within(relative_error(x, y, precision="bf16", **options), 4 * ROUNDING, BFLOAT16)


@pytest.mark.parametrize(("objective", "scale_hopfield"), SCALES)
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs_in_bfloat16(objective, scale_hopfield, name):
    """Also where a duplicate outweighs all other negatives and nearly all of the gradient cancels."""
    x, y = (rows.float().double() for rows in HARD[name])
    _, expected = loss_and_gradient(x, y, objective=objective, scale_hopfield=scale_hopfield)
    _, gradient = loss_and_gradient(
        x, y, torch.float32, "tiled", objective=objective, scale_hopfield=scale_hopfield, precision="bf16"
    )
    within(*smaller_share(gradient - expected, expected, 1e-6), BFLOAT16)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("inv_tau", [1.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("copies", [2, 3])
def test_duplicated_pairs_in_bfloat16(objective, inv_tau, copies):
    x, y = (rows.repeat(copies, 1) for rows in alike(100, 192))
    options = {"objective": objective, "inv_tau": inv_tau}
    _, expected = loss_and_gradient(x, y, **options)
    _, gradient = loss_and_gradient(x, y, torch.float32, "tiled", precision="bf16", **options)
    # At inv_tau 100 the gradient is 1e-16 and less: what is left is rounding of single sums.
    within(*smaller_share(gradient - expected, expected, 1e-6 * max(1.0, inv_tau / 30)), BFLOAT16)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [1000, 2048, 3001])
def test_gradients_at_larger_sizes(objective, n, monkeypatch):
    monkeypatch.undo()  # the tiles that are used
    x = unit_rows(n, 512, 0).float().double()
    y = normalize(x / 4 + unit_rows(n, 512, 1), dim=1).float().double()
    within(relative_error(x, y, objective=objective), 1e-5, FLOAT32)
    within(relative_error(x, y, objective=objective, precision="bf16"), 4 * ROUNDING, BFLOAT16)
