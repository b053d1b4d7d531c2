"""The definitions against numbers of the reference programs, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from margins import EPS, close
from safetensors.torch import load_file

from cloob_cli.core.loss import (
    clip_hopfield_loss,
    clip_loss,
    cloob_loss,
    contrastive_loss,
    hopfield_retrieve,
    infoloob_loss,
)
from cloob_cli.errors import LossInputError

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parents[1] / "golden" / "loss"
CASES = json.loads((GOLDEN / "cases.json").read_text())
FLOAT64 = "float64 keeps 16 digits; a few dozen operations lose two"


def embeddings(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator, dtype=torch.float64).unbind()
    y = x + noise  # pairs are alike, as they are after some training
    return tuple(torch.nn.functional.normalize(rows, dim=1).to(dtype) for rows in (x, y))


@pytest.mark.parametrize("objective", ["cloob", "infoloob", "clip"])
@pytest.mark.parametrize("case", CASES, ids=[case["file"] for case in CASES])
@pytest.mark.parametrize("implementation", ["definition", "tiled"])
def test_values_and_gradients_equal_the_reference_programs(case, objective, implementation):
    golden = load_file(GOLDEN / case["file"])
    x = golden["image_embeddings"].requires_grad_()
    y = golden["text_embeddings"].requires_grad_()
    scale = 1.0 if objective == "clip" else 2 / case["inv_tau"]  # ml-jku's scale
    loss = scale * contrastive_loss(
        x, y, objective, case["inv_tau"], case["scale_hopfield"], implementation=implementation
    )
    loss.backward()
    assert loss.dtype == torch.float64
    reason = "float64: logits up to 100 keep 14 digits after the point, and sums of a hundred terms lose two"
    close(loss.item(), case[objective], reason, atol=1e-10)
    close(x.grad, golden[f"{objective}.grad_image"], reason, atol=1e-10)
    close(y.grad, golden[f"{objective}.grad_text"], reason, atol=1e-10)


def test_retrieval_from_far_apart_patterns_finds_the_nearest():
    stored = torch.eye(4, dtype=torch.float64)
    queries = torch.nn.functional.normalize(stored + 0.1, dim=1)
    found = hopfield_retrieve(queries, stored, 1000.0)
    close(found, stored, "float64; the others' weights are below exp(-500)", atol=1e-14)


def test_equal_captions_are_left_out_of_the_negatives_only():
    x, y = embeddings(5, 8)
    ids = torch.tensor([0, 1, 2, 1, 3])
    tau = 7.0
    expected = []
    for a, b in ((x, y), (y, x)):
        for i in range(5):
            negatives = [tau * a[i] @ b[j] for j in range(5) if ids[j] != ids[i]]
            expected.append(torch.stack(negatives).logsumexp(0) - tau * a[i] @ b[i])
    close(infoloob_loss(x, y, tau, ids), torch.stack(expected).mean(), FLOAT64, rtol=1e-13)

    expected = []
    for a, b in ((x, y), (y, x)):
        for i in range(5):
            summed = [tau * a[i] @ b[j] for j in range(5) if ids[j] != ids[i] or j == i]
            expected.append(torch.stack(summed).logsumexp(0) - tau * a[i] @ b[i])
    close(clip_loss(x, y, tau, ids), torch.stack(expected).mean(), FLOAT64, rtol=1e-13)

    expected = []
    for stored, (q_a, q_b) in ((x, (x, y)), (y, (y, x))):
        a, b = hopfield_retrieve(q_a, stored, 8.0), hopfield_retrieve(q_b, stored, 8.0)
        for i in range(5):
            negatives = [tau * a[i] @ b[j] for j in range(5) if ids[j] != ids[i]]
            expected.append(torch.stack(negatives).logsumexp(0) - tau * a[i] @ b[i])
    close(cloob_loss(x, y, tau, 8.0, ids), torch.stack(expected).mean(), FLOAT64, rtol=1e-13)

    expected = []
    for stored, (q_a, q_b) in ((x, (x, y)), (y, (y, x))):
        a, b = hopfield_retrieve(q_a, stored, 8.0), hopfield_retrieve(q_b, stored, 8.0)
        for i in range(5):
            summed = [tau * a[i] @ b[j] for j in range(5) if ids[j] != ids[i] or j == i]
            expected.append(torch.stack(summed).logsumexp(0) - tau * a[i] @ b[i])
    close(clip_hopfield_loss(x, y, tau, 8.0, ids), torch.stack(expected).mean(), FLOAT64, rtol=1e-13)


def test_infonce_after_retrieval_is_a_cross_entropy_of_what_was_retrieved():
    x, y = embeddings(9, 6)
    pairs = [[hopfield_retrieve(query, stored, 5.0) for query in (x, y)] for stored in (x, y)]
    (images_x, texts_x), (images_y, texts_y) = pairs
    own = torch.arange(9)
    logits = 20.0 * images_x @ texts_x.T, 20.0 * texts_y @ images_y.T
    expected = sum(torch.nn.functional.cross_entropy(each, own) for each in logits) / 2
    close(clip_hopfield_loss(x, y, 20.0, 5.0), expected, FLOAT64, rtol=1e-13)


def test_different_captions_mask_nothing():
    x, y = embeddings(6, 4)
    assert cloob_loss(x, y, 30.0, 8.0, torch.arange(6) * 7) == cloob_loss(x, y, 30.0, 8.0)


@pytest.mark.parametrize("objective", ["cloob", "infoloob", "clip", "clip_hopfield"])
def test_learnable_temperature_gets_the_derivative(objective):
    x, y = embeddings(9, 6)
    tau = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    contrastive_loss(x, y, objective, tau).backward()
    step = 1e-5
    with torch.no_grad():
        above, below = (contrastive_loss(x, y, objective, 20.0 + sign * step) for sign in (1, -1))
    # Differences of a loss of about 10 lose 1e-15 / 1e-5 = 1e-10; what the derivative leaves out is step^2 = 1e-10.
    close(tau.grad.item(), ((above - below) / (2 * step)).item(), "rounding of a difference quotient", atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_arithmetic_is_float32_whatever_the_autocast(dtype):
    x, y = embeddings(32, 16, dtype=dtype)
    expected = cloob_loss(x.double(), y.double(), 30.0, 8.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cloob_loss(x, y, 30.0, 8.0)
    assert loss.dtype == torch.float32
    close(loss.item(), expected.item(), "float32: 30 logits of up to 30, each rounded a few times", atol=4 * 30 * EPS)


X, Y = embeddings(4, 3, dtype=torch.float32)
BROKEN = X.clone()
BROKEN[2, 1] = float("nan")
HUGE = X.clone()
HUGE[0, 0] = float("inf")


@pytest.mark.parametrize("objective", ["cloob", "infoloob", "clip"])
@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X[:1], Y[:1], {}, "at least two pairs, not 1"),
        (X[:0], Y[:0], {}, "at least two pairs, not 0"),
        (X, Y[:3], {}, "of one shape, not"),
        (X, Y[:, :2], {}, "of one shape, not"),
        (X[None], Y[None], {}, "of one shape, not"),
        (X[:, :0], Y[:, :0], {}, "of one shape, not"),
        (X.int(), Y.int(), {}, "floating point"),
        (BROKEN, Y, {}, "not finite"),
        (X, HUGE, {}, "not finite"),
        (X, Y, {"inv_tau": 0.0}, "above zero"),
        (X, Y, {"inv_tau": float("nan")}, "above zero"),
        (X, Y, {"inv_tau": torch.tensor(-1.0)}, "above zero"),
        (X, Y, {"inv_tau": torch.ones(2)}, "one number"),
        (X, Y, {"caption_ids": torch.zeros(4, dtype=torch.int64)}, "same caption"),
        (X, Y, {"caption_ids": torch.arange(3)}, "caption_ids must be int64"),
        (X, Y, {"caption_ids": torch.arange(4.0)}, "caption_ids must be int64"),
    ],
)
def test_what_no_loss_is_defined_for_is_a_clear_error(objective, x, y, options, message):
    with pytest.raises(LossInputError, match=message):
        contrastive_loss(x, y, objective, **options)


def test_unknown_objective_and_scale_are_clear_errors():
    with pytest.raises(LossInputError, match="unknown objective 'siglip'"):
        contrastive_loss(X, Y, "siglip")  # type: ignore[arg-type]
    with pytest.raises(LossInputError, match="scale_hopfield"):
        contrastive_loss(X, Y, scale_hopfield=0.0)
