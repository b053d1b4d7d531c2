"""Class embeddings and probabilities, against a plain loop in NumPy."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from margins import EPS, close

from cloob_cli.core.zero_shot import class_embeddings, fill_template, probabilities


def tokenize(texts: list[str]) -> torch.Tensor:
    """A text as eight numbers that depend on all of it."""
    return torch.tensor([list(hashlib.sha256(text.encode()).digest()[:8]) for text in texts])


def encode_text(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(tokens.float() - 127.5, dim=1)


pytestmark = pytest.mark.numeric

CLASSES = [["cat"], ["dog", "hound", "puppy"], ["bird", "fowl"]]
TEMPLATES = ["{c}", "a photo of a {c}.", "{} or {c}"]


def test_is_the_normalized_mean_over_names_and_templates() -> None:
    ours = class_embeddings(encode_text, tokenize, CLASSES, TEMPLATES).numpy()
    for row, names in zip(ours, CLASSES, strict=True):
        prompts = [f for n in names for f in (n, f"a photo of a {n}.", f"{n} or {n}")]
        units = np.stack([encode_text(tokenize([prompt]))[0].numpy() for prompt in prompts])
        mean = units.mean(axis=0)
        close(row, mean / np.linalg.norm(mean), "a mean of nine unit rows in float32", atol=4 * EPS)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_batches_change_nothing(batch_size: int) -> None:
    whole = class_embeddings(encode_text, tokenize, CLASSES, TEMPLATES)
    found = class_embeddings(encode_text, tokenize, CLASSES, TEMPLATES, batch_size)
    close(found, whole, "means of unit rows, added in another order", atol=4 * EPS)


def test_batches_are_no_larger_than_asked() -> None:
    sizes = []

    def counting(tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return encode_text(tokens)

    class_embeddings(counting, tokenize, CLASSES, TEMPLATES, batch_size=4)
    assert sizes == [4, 4, 4, 4, 2]


@pytest.mark.parametrize(("classes", "templates"), [([], ["{c}"]), ([["a"], []], ["{c}"]), ([["a"]], [])])
def test_refuses_nothing(classes: list[list[str]], templates: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        class_embeddings(encode_text, tokenize, classes, templates)


def test_fills_both_placeholders_and_leaves_other_braces() -> None:
    assert fill_template("a {c}, {} and {x}{0.real}", "c{}{c}%s") == "a c{}{c}%s, c{}{c}%s and {x}{0.real}"


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(0.1, 200))
def test_probabilities_are_the_softmax_of_scaled_cosines(cosines: list[float], inv_tau: float) -> None:
    ours = probabilities(torch.tensor([cosines], dtype=torch.float64), inv_tau)[0]
    weights = np.exp(inv_tau * (np.array(cosines) - max(cosines)))
    close(ours, weights / weights.sum(), "float32 logits of up to 200: EPS 200 / 2 each", rtol=2 * 200 * EPS, atol=EPS)
    assert ours.dtype == torch.float32
