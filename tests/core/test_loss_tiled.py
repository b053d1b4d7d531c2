"""The tiled form against the definition in float64: values, gradients, memory layouts, hard inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow_steps import narrow
from torch.nn.functional import normalize

from cloob_cli.core import loss_choice
from cloob_cli.core.loss import contrastive_loss
from cloob_cli.core.loss_choice import DeviceSettings, choose_implementation
from cloob_cli.core.loss_inputs import check_inputs
from cloob_cli.core.loss_retrieval import Retrieval
from cloob_cli.core.loss_steps import Steps
from cloob_cli.errors import UsageError

OBJECTIVES = ["cloob", "infoloob", "clip"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles and chunks that every batch here is cut into, none of them evenly."""
    monkeypatch.setitem(loss_choice.SETTINGS, "cpu", DeviceSettings(2, tile=(13, 29), chunk_elements=1000))


def unit_rows(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def alike(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings whose pairs are alike, as they are after some training; exact in float32."""
    x = unit_rows(n, d, 0)
    return x.float().double(), normalize(x + unit_rows(n, d, 1), dim=1).float().double()


def loss_and_gradient(x, y, dtype=torch.float64, implementation="definition", **options):
    x, y = (rows.detach().to(dtype).clone().requires_grad_() for rows in (x, y))
    loss = contrastive_loss(x, y, implementation=implementation, **options)
    loss.backward()
    return loss.item(), torch.cat([x.grad, y.grad]).double()


def relative_error(x, y, dtype=torch.float32, precision=None, **options) -> float:
    _, expected = loss_and_gradient(x, y, **options)
    _, found = loss_and_gradient(x, y, dtype, "tiled", precision=precision, **options)
    return float((found - expected).norm() / expected.norm())


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("scale_hopfield", [8.0, 400.0])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(objective, scale_hopfield, masked):
    x, y = unit_rows(7, 3, 0).requires_grad_(), unit_rows(7, 3, 1).requires_grad_()
    tau = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 2, 1, 3, 0, 4]) if masked else None

    def loss(x, y, tau):
        return contrastive_loss(x, y, objective, tau, scale_hopfield, caption_ids=ids, implementation="tiled")

    assert torch.autograd.gradcheck(loss, (x, y, tau))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [2, 3, 12, 13, 14, 29, 42, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_any_number_of_rows_equals_the_definition(objective, n, masked):
    x, y = alike(n, 5)
    ids = (torch.arange(n) * 2 + 1) // 3 if masked else None
    expected_loss, expected = loss_and_gradient(x, y, objective=objective, caption_ids=ids)
    loss, gradient = loss_and_gradient(x, y, implementation="tiled", objective=objective, caption_ids=ids)
    assert loss == pytest.approx(expected_loss, abs=1e-12)
    torch.testing.assert_close(gradient, expected, atol=1e-13, rtol=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 60),
    d=st.integers(1, 20),
    objective=st.sampled_from(OBJECTIVES),
    inv_tau=st.floats(0.01, 100.0),
    scale_hopfield=st.floats(0.1, 300.0),
    norm=st.floats(0.2, 3.0),
    captions=st.none() | st.integers(2, 60),
    strides=st.sampled_from(["plain", "columns", "every second", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_shapes_scales_and_strides(n, d, objective, inv_tau, scale_hopfield, norm, captions, strides, seed):
    x, y = unit_rows(n, d, seed) * norm, unit_rows(n, d, seed + 1) / norm
    ids = None if captions is None else torch.arange(n) % min(captions, n)
    options = {"objective": objective, "inv_tau": inv_tau, "scale_hopfield": scale_hopfield, "caption_ids": ids}
    if strides == "expanded":
        x = x[:1].expand(n, d)
    expected_loss, expected = loss_and_gradient(x, y, **options)
    if strides == "columns":
        x, y = x.T.contiguous().T, y.T.contiguous().T
    if strides == "every second":
        x, y = (rows.repeat_interleave(2, dim=0)[::2] for rows in (x, y))
    a, b = (rows.detach().requires_grad_() for rows in (x, y))
    loss = contrastive_loss(a, b, implementation="tiled", **options)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9, abs=1e-9)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(torch.cat([a.grad, b.grad]), expected, atol=1e-9 * scale, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 60),
    d=st.integers(2, 40),
    objective=st.sampled_from(OBJECTIVES),
    dtypes=st.tuples(*[st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])] * 2),
    precision=st.sampled_from([None, "fp32", "tf32"]),
    scale_hopfield=st.floats(0.5, 100.0),
    seed=st.integers(0, 1000),
)
def test_number_formats(n, d, objective, dtypes, precision, scale_hopfield, seed):
    x, y = unit_rows(n, d, seed).to(dtypes[0]), unit_rows(n, d, seed + 1).to(dtypes[1])
    options = {"objective": objective, "inv_tau": 10.0, "scale_hopfield": scale_hopfield}
    expected_loss, expected = loss_and_gradient(x.double(), y.double(), **options)
    x, y = x.requires_grad_(), y.requires_grad_()
    loss = contrastive_loss(x, y, implementation="tiled", precision=precision, **options)
    loss.backward()
    assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5, abs=1e-5)
    for rows, gradient in zip((x, y), expected.chunk(2), strict=True):
        assert rows.grad.dtype == rows.dtype
        largest = max(gradient.abs().max().item(), 1e-2)
        # A gradient comes back in its embeddings' own format: rounded once more.
        allowed = largest * (2e-5 + torch.finfo(rows.dtype).eps)
        torch.testing.assert_close(rows.grad.double(), gradient, atol=allowed, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_computed_in_float32(dtype):
    x, y = (rows.to(dtype).requires_grad_() for rows in alike(50, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(x, y, implementation="tiled")
    loss.backward()
    expected_loss, expected = loss_and_gradient(x.detach().double(), y.detach().double())
    assert loss.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(torch.cat([x.grad, y.grad]).double(), expected, rtol=rounding, atol=1e-6)


# --- the autograd function --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_second_call_and_a_retained_graph(objective):
    x, y = (rows.requires_grad_() for rows in alike(40, 6))
    loss = contrastive_loss(x, y, objective, implementation="tiled")
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(x.grad, 4 * first)
    x.grad = None
    contrastive_loss(x, y, objective, implementation="tiled").backward()
    torch.testing.assert_close(x.grad, first, rtol=0, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_what_asks_for_a_gradient_gets_one(objective):
    x, y = alike(20, 6)
    x.requires_grad_()
    contrastive_loss(x, y, objective, implementation="tiled").backward()
    assert y.grad is None
    tau = torch.tensor(9.0, requires_grad=True)
    contrastive_loss(x.detach(), y, objective, tau, implementation="tiled").backward()
    _, expected = x.grad, tau.grad.clone()
    tau.grad = None
    contrastive_loss(x.detach(), y, objective, tau, implementation="definition").backward()
    torch.testing.assert_close(tau.grad, expected)
    with torch.no_grad():
        assert not contrastive_loss(x, y, objective, implementation="tiled").requires_grad


def test_a_second_derivative_is_refused():
    x, y = (rows.requires_grad_() for rows in alike(10, 4))
    loss = contrastive_loss(x, y, implementation="tiled") * x.sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- float32 and bfloat16 ---------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(loss_choice, "Steps", narrow(Steps))
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


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_no_matrix_of_all_pairs_is_ever_made():
    """Every tensor that the loss makes is counted: the largest stays far below N x N, and memory is linear in N."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class LargestTensor(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(getattr(self, "largest", 0), tensor.numel())
            return result

    for objective in OBJECTIVES:
        for options in ({}, {"caption_ids": torch.arange(150) // 2}, {"scale_hopfield": 100.0}):
            x, y = (rows.requires_grad_() for rows in alike(150, 4))
            with LargestTensor() as seen:
                contrastive_loss(x, y, objective, implementation="tiled", **options).backward()
            assert seen.largest <= 2000, (objective, options)


@pytest.mark.slow
def test_memory_is_a_tenth_of_the_definitions_at_8192():
    """Peak resident memory above the inputs, each form in a process of its own."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_loss.py"
    options = ["--sizes", "8192", "--repeats", "0", "--error-up-to", "0", "--device", "cpu"]
    memory = {}
    for form in ("definition", "tiled fp32"):
        done = subprocess.run([sys.executable, str(script), *options, "--forms", form], capture_output=True, text=True)
        memory[form] = float(done.stdout.splitlines()[-1].split()[-3])
    assert memory["tiled fp32"] < memory["definition"] / 10


def test_scores_are_shared_between_directions():
    """One half of the two symmetric score matrices and one of X Y^T, not four whole ones."""
    x, y = alike(64, 4)
    products = []

    class Counting(Steps):
        def product(self, name, left, right, scale=1.0):
            products.append(len(left) * right.shape[1])
            return super().product(name, left, right, scale)

    steps = Counting(x.device, x.dtype, "fp32", tile=(8, 8), chunk_elements=1000)
    retrieval = Retrieval(check_inputs(x, y, 30.0), 8.0, steps)
    retrieval.all_but_last()
    retrieval.last()
    assert sum(products) == 64 * 64 + 2 * (64 * 64 + 8 * 64) // 2


def test_the_choice_and_its_reason():
    cpu = torch.device("cpu")
    assert choose_implementation(cpu, torch.float32, 8).name == "tiled"
    assert choose_implementation(cpu, torch.float32, 1).name == "definition"
    assert choose_implementation(cpu, torch.float32, 1, processes=2).name == "tiled"
    assert choose_implementation(cpu, torch.float32, 8, requested="definition").name == "definition"
    wish = choose_implementation(cpu, torch.float64, 8, requested="triton")
    assert (wish.name, wish.reason) == (
        "tiled",
        "the Triton kernels cannot serve: they compute in float32, not float64",
    )
    with pytest.raises(UsageError, match="unknown implementation 'fast'"):
        choose_implementation(cpu, torch.float32, 8, requested="fast")
