"""The tiled implementation against the definition: values, gradients, memory layouts, memory; the choice of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import OBJECTIVES, alike, loss_and_gradient, unit_rows
from margins import EPS, close

from cloob_cli.core import loss as losses
from cloob_cli.core.loss import contrastive_loss
from cloob_cli.core.loss.inputs import check_inputs
from cloob_cli.core.loss.retrieval import Retrieval
from cloob_cli.core.loss.steps import Steps, TileSizes
from cloob_cli.errors import UsageError

pytestmark = [pytest.mark.usefixtures("small_tiles"), pytest.mark.numeric]

FLOAT64 = "docs/loss.md, Exactness: 1e-9 in float64"
FLOAT32 = "docs/loss.md, Exactness: 1e-5 in float32"


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
    close(loss, expected_loss, "float64 at inv_tau 30: 30 * 2e-16 for each of a hundred rows", atol=1e-12)
    close(gradient, expected, "float64, elements of up to 0.1 made of a hundred products", atol=1e-13, rtol=1e-10)


@settings(max_examples=40, derandomize=True)
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
    close(loss.item(), expected_loss, FLOAT64, rtol=1e-9, atol=1e-9)
    scale = max(1.0, expected.abs().max().item())
    close(torch.cat([a.grad, b.grad]), expected, FLOAT64, atol=1e-9 * scale)


@settings(max_examples=25, derandomize=True)
@given(
    n=st.integers(2, 60),
    d=st.integers(2, 40),
    objective=st.sampled_from(OBJECTIVES),
    dtypes=st.tuples(*[st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])] * 2),
    precision=st.sampled_from([None, "fp32", "tf32"]),
    scale_hopfield=st.floats(0.5, 100.0),
    seed=st.integers(0, 1000),
)
def test_dtypes(n, d, objective, dtypes, precision, scale_hopfield, seed):
    x, y = unit_rows(n, d, seed).to(dtypes[0]), unit_rows(n, d, seed + 1).to(dtypes[1])
    options = {"objective": objective, "inv_tau": 10.0, "scale_hopfield": scale_hopfield}
    expected_loss, expected = loss_and_gradient(x.double(), y.double(), **options)
    x, y = x.requires_grad_(), y.requires_grad_()
    loss = contrastive_loss(x, y, implementation="tiled", precision=precision, **options)
    loss.backward()
    assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    close(loss.item(), expected_loss, FLOAT32, rtol=1e-5, atol=1e-5)
    for rows, gradient in zip((x, y), expected.chunk(2), strict=True):
        assert rows.grad.dtype == rows.dtype
        largest = max(gradient.abs().max().item(), 1e-2)
        # A gradient comes back in its embeddings' own dtype: rounded once more.
        allowed = largest * (2e-5 + torch.finfo(rows.dtype).eps)
        close(rows.grad.double(), gradient, "1e-5 in float32, twice for beta to 100; rounded once more", atol=allowed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_computed_in_float32(dtype):
    x, y = (rows.to(dtype).requires_grad_() for rows in alike(50, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(x, y, implementation="tiled")
    loss.backward()
    expected_loss, expected = loss_and_gradient(x.detach().double(), y.detach().double())
    assert loss.dtype == torch.float32
    assert x.grad.dtype == dtype
    close(loss.item(), expected_loss, FLOAT32, rtol=1e-5)
    limit = 1.5 * torch.finfo(dtype).eps  # rounding to nearest takes half a unit
    close(torch.cat([x.grad, y.grad]).double(), expected, "rounded to the embeddings' dtype", rtol=limit, atol=1e-6)


# --- the autograd function --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_second_call_and_a_retained_graph(objective):
    x, y = (rows.requires_grad_() for rows in alike(40, 6))
    loss = contrastive_loss(x, y, objective, implementation="tiled")
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    (3 * loss).backward()
    close(x.grad, 4 * first, "float64: 1 + 3 = 4 but for rounding", rtol=1e-15)
    x.grad = None
    contrastive_loss(x, y, objective, implementation="tiled").backward()
    assert torch.equal(x.grad, first)


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
    close(tau.grad, expected, "the derivative is float64 rounded to float32", rtol=2 * EPS)
    with torch.no_grad():
        assert not contrastive_loss(x, y, objective, implementation="tiled").requires_grad


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="older torch has one setting")
def test_either_way_to_set_torchs_precision_is_left_as_it_was():
    """Torch refuses to tell the older setting once the newer has been used."""
    code = """
import torch
from torch.nn.functional import normalize
from cloob_cli.core.loss import contrastive_loss
x = normalize(torch.randn(300, 8), dim=1)
torch.set_float32_matmul_precision("high")
contrastive_loss(x, x, implementation="tiled")
assert torch.get_float32_matmul_precision() == "high"
torch.backends.fp32_precision = "tf32"
contrastive_loss(x, x, implementation="tiled")
assert torch.backends.cuda.matmul.fp32_precision == torch.backends.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_derivative_is_refused():
    x, y = (rows.requires_grad_() for rows in alike(10, 4))
    loss = contrastive_loss(x, y, implementation="tiled") * x.sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


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
    """Peak resident memory above the inputs, each implementation in a process of its own."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_loss.py"
    options = ["--sizes", "8192", "--repeats", "0", "--error-up-to", "0", "--device", "cpu"]
    memory = {}
    for name in ("definition", "tiled fp32"):
        one = [*options, "--implementations", name]
        done = subprocess.run([sys.executable, str(script), *one], capture_output=True, text=True)
        memory[name] = float(done.stdout.splitlines()[-1].split()[-3])
    assert memory["tiled fp32"] < memory["definition"] / 10


def test_scores_are_shared_between_directions():
    """One half of the two symmetric score matrices and one of X Y^T, not four whole ones."""
    x, y = alike(64, 4)
    products = []

    class Counting(Steps):
        def product(self, name, left, right, scale=1.0):
            products.append(len(left) * right.shape[1])
            return super().product(name, left, right, scale)

    steps = Counting(x.device, x.dtype, "fp32", TileSizes(tile=(8, 8), chunk_elements=1000))
    retrieval = Retrieval(check_inputs(x, y, 30.0), 8.0, steps)
    retrieval.patterns("u_x", "u_y", "v_x")
    retrieval.patterns("v_y")
    assert sum(products) == 64 * 64 + 2 * (64 * 64 + 8 * 64) // 2


def test_without_a_wish_the_number_of_pairs_decides(monkeypatch):
    taken = []
    monkeypatch.setattr(losses, "_loss", lambda *arguments: taken.append(arguments[3]))
    x, y = alike(losses.TILED_FROM, 4)
    contrastive_loss(x[1:], y[1:])
    contrastive_loss(x, y)
    contrastive_loss(x, y, implementation="definition")
    assert taken == ["definition", "tiled", "definition"]
    with pytest.raises(UsageError, match="unknown implementation 'fast'"):
        contrastive_loss(x, y, implementation="fast")  # type: ignore[arg-type]
