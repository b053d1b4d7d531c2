"""The tiled form in float32 and with bfloat16 products against the definition in float64, hard inputs included."""

from __future__ import annotations

import pytest
import torch
from loss_checks import OBJECTIVES, alike, loss_and_gradient, relative_error, unit_rows, with_outlier
from narrow_steps import narrow
from torch.nn.functional import normalize

from cloob_cli.core.loss_forms import choice
from cloob_cli.core.loss_forms.steps import Steps

pytestmark = pytest.mark.usefixtures("small_tiles")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [3, 50, 333])
def test_float32_gradients_are_within_1e_5(objective, n):
    x, y = alike(n, 48)[0], unit_rows(n, 48, 5).float().double()
    assert relative_error(x, y, objective=objective) < 1e-5
    assert relative_error(x, y, objective=objective, inv_tau=100.0) < 1e-5


@pytest.mark.parametrize("scale_hopfield", [1.0, 8.0, 15.0, 19.9, 30.0, 100.0])
def test_float32_gradients_are_within_1e_5_at_any_hopfield_scale(scale_hopfield):
    x, y = alike(200, 48)
    assert relative_error(x, y, scale_hopfield=scale_hopfield) < 1e-5


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
    assert (exact - expected).norm() < 1e-9 * expected.norm()
    _, definition = loss_and_gradient(x, y, torch.float32, **options)
    _, found = loss_and_gradient(x, y, torch.float32, "tiled", **options)
    # In a narrow cone the gradient is ill-conditioned: the definition in float32 is no nearer to it.
    allowed = max(1e-5 * float(expected.norm()), float((definition - expected).norm()))
    assert (found - expected).norm() < allowed
    _, coarse = loss_and_gradient(x, y, torch.float32, "tiled", precision="bf16", **options)
    assert (coarse - expected).norm() < 2e-2 * expected.norm()


def test_two_groups_far_apart():
    """So far that tiles lose precision at large scales: then the maximum of each row is taken out."""
    x = normalize(
        unit_rows(1, 3, 0) * torch.tensor([1.0] * 19 + [-1.0] * 3)[:, None] + 0.05 * unit_rows(22, 3, 1), dim=1
    )
    y = normalize(x.roll(5, 0) + 0.3 * unit_rows(22, 3, 2), dim=1)
    for scale_hopfield in (8.0, 20.0, 100.0, 150.0):
        _, expected = loss_and_gradient(x, y, scale_hopfield=scale_hopfield)
        _, found = loss_and_gradient(x, y, implementation="tiled", scale_hopfield=scale_hopfield)
        assert (found - expected).abs().max() < 1e-9 * max(1.0, float(expected.abs().max()))


# Objectives with scale_hopfield: the others have no retrieval.
SCALES = [("cloob", 0.1), ("cloob", 8.0), ("cloob", 100.0), ("infoloob", 8.0), ("clip", 8.0)]


@pytest.mark.parametrize(("objective", "scale_hopfield"), SCALES)
@pytest.mark.parametrize("inv_tau", [1.0, 30.0, 100.0])
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs_in_float32(objective, inv_tau, scale_hopfield, name):
    x, y = (rows.float().double() for rows in HARD[name])
    options = {"objective": objective, "inv_tau": inv_tau, "scale_hopfield": scale_hopfield}
    expected_loss, expected = loss_and_gradient(x, y, **options)
    loss, gradient = loss_and_gradient(x, y, torch.float32, "tiled", **options)
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=2e-5)
    # 1e-5 of the gradient, or 1e-6 absolute where it all but vanishes.
    worst = (gradient - expected).abs().max().item()
    assert worst < max(1e-5 * expected.abs().max().item(), 1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [3, 50, 333])
@pytest.mark.parametrize("inv_tau", [1.0, 30.0, 100.0])
def test_bfloat16_gradients_are_within_1e_2(objective, n, inv_tau):
    x, y = alike(n, 192)[0], unit_rows(n, 192, 5).float().double()  # the error of a score falls as 1 / sqrt(width)
    assert relative_error(x, y, precision="bf16", objective=objective, inv_tau=inv_tau) < 1e-2


@pytest.mark.parametrize("scale_hopfield", [0.1, 1.0, 8.0, 15.0, 20.5, 100.0])
def test_bfloat16_gradients_are_within_1e_2_at_any_hopfield_scale(scale_hopfield):
    x, y = alike(200, 48)
    assert relative_error(x, y, precision="bf16", scale_hopfield=scale_hopfield) < 1e-2


@pytest.mark.parametrize(("objective", "scale_hopfield"), SCALES)
def test_operands_that_are_bfloat16_tensors(objective, scale_hopfield, monkeypatch):
    """As on CUDA, where operands are no float32 tensors with rounded numbers."""
    monkeypatch.setattr(choice, "Steps", narrow(Steps))
    x, y = alike(50, 192)[0], unit_rows(50, 192, 5).float().double()
    ids = torch.arange(50) // 2
    options = {"objective": objective, "scale_hopfield": scale_hopfield, "caption_ids": ids}
    assert relative_error(x, y, precision="bf16", **options) < 1e-2


@pytest.mark.parametrize(("objective", "scale_hopfield"), SCALES)
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs_in_bfloat16(objective, scale_hopfield, name):
    """Also where a duplicate outweighs all other negatives and nearly all of the gradient cancels."""
    x, y = (rows.float().double() for rows in HARD[name])
    _, expected = loss_and_gradient(x, y, objective=objective, scale_hopfield=scale_hopfield)
    _, gradient = loss_and_gradient(
        x, y, torch.float32, "tiled", objective=objective, scale_hopfield=scale_hopfield, precision="bf16"
    )
    error = gradient - expected
    assert error.norm() < 1e-2 * expected.norm() or error.abs().max() < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("inv_tau", [1.0, 30.0, 100.0])
@pytest.mark.parametrize("copies", [2, 3])
def test_duplicated_pairs_in_bfloat16(objective, inv_tau, copies):
    x, y = (rows.repeat(copies, 1) for rows in alike(100, 192))
    options = {"objective": objective, "inv_tau": inv_tau}
    _, expected = loss_and_gradient(x, y, **options)
    _, gradient = loss_and_gradient(x, y, torch.float32, "tiled", precision="bf16", **options)
    error = gradient - expected
    # At inv_tau 100 the gradient is 1e-16 and less: what is left is rounding of single sums.
    assert error.norm() < 1e-2 * expected.norm() or error.abs().max() < 1e-6 * max(1.0, inv_tau / 30)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [1000, 2048, 3001])
def test_gradients_at_larger_sizes(objective, n, monkeypatch):
    monkeypatch.undo()  # the tiles that are used
    x = unit_rows(n, 512, 0).float().double()
    y = normalize(x / 4 + unit_rows(n, 512, 1), dim=1).float().double()
    assert relative_error(x, y, objective=objective) < 1e-5
    assert relative_error(x, y, objective=objective, precision="bf16") < 1e-2
