"""Retrieval from examples and texts against sums that are written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from margins import EPS, close

from cloob_cli.core.few_shot import Centers, Retrieval, choose_retrieval, retrieval_logits, tip_adapter_logits


def unit(rows: int, seed: int, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


TEXTS, EXAMPLES, QUERIES = unit(4, 0), unit(9, 1), unit(5, 2)
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])  # the fourth label has no example


def by_hand(
    query: torch.Tensor, examples: torch.Tensor, labels: torch.Tensor, usual: float, choice: Retrieval
) -> list[float]:
    query, examples, texts = query.double(), examples.double(), TEXTS.double()
    logits = []
    for number in range(len(TEXTS)):
        own = [
            math.exp(choice.beta * float(query @ one))
            for one, label in zip(examples, labels, strict=True)
            if label == number
        ]
        text = math.exp(choice.beta * (float(query @ texts[number]) + choice.gap))
        logits.append(math.log(usual * sum(own) / max(len(own), 1) + text))
    return logits


@pytest.mark.numeric
@pytest.mark.parametrize("choice", [Retrieval(), Retrieval(10.0, 0.5), Retrieval(70.0, 0.0)])
def test_logits_are_logarithms_of_summed_weights(choice: Retrieval) -> None:
    found = retrieval_logits(QUERIES, TEXTS, EXAMPLES, LABELS, choice)
    expected = [by_hand(query, EXAMPLES, LABELS, 3.0, choice) for query in QUERIES]
    close(found.numpy(), expected, "beta times the error of a cosine", atol=choice.beta * 20 * EPS)


@pytest.mark.numeric
def test_no_example_retrieves_itself() -> None:
    found = retrieval_logits(EXAMPLES, TEXTS, EXAMPLES, LABELS, Retrieval(), own=True)
    for number in range(len(EXAMPLES)):
        others = torch.arange(len(EXAMPLES)) != number
        expected = by_hand(EXAMPLES[number], EXAMPLES[others], LABELS[others], 3.0, Retrieval())
        close(found[number].numpy(), expected, "beta times the error of a cosine", atol=30 * 20 * EPS)


def test_without_texts_a_label_without_examples_is_impossible() -> None:
    logits = retrieval_logits(QUERIES, TEXTS, EXAMPLES, LABELS, Retrieval(30.0, -math.inf))
    assert torch.isneginf(logits[:, 3]).all()
    assert torch.isfinite(logits[:, :3]).all()


@pytest.mark.numeric
def test_the_text_fades_as_examples_come() -> None:
    """Of one text and n copies of an example that are equally near, the text has 1 / (n + 1) of the weight."""
    query, texts = unit(1, 5), torch.cat([unit(1, 5), -unit(1, 5)])
    for count in (1, 4, 16):
        examples, labels = query.expand(count, -1), torch.ones(count, dtype=torch.int64)
        logits = retrieval_logits(query, texts, examples, labels, Retrieval(30.0, 0.0))
        share = torch.softmax(logits, 1)[0, 0].item()
        close(share, 1 / (count + 1), "a softmax in float32; the far text weighs e^-60", atol=1e-4)


def test_leaving_one_out_finds_what_helps() -> None:
    """Examples in tight groups far from their texts: texts are worth nothing, and are found to be."""
    centers = unit(3, 7)
    examples = torch.nn.functional.normalize(centers[LABELS] + 0.1 * EXAMPLES, dim=1)
    wrong = centers[[1, 2, 0]]
    choice = choose_retrieval(wrong, examples, LABELS)
    predicted = retrieval_logits(centers, wrong, examples, LABELS, choice).argmax(1)
    assert predicted.tolist() == [0, 1, 2]
    right = choose_retrieval(centers, EXAMPLES, LABELS)  # here the examples are worth nothing
    assert retrieval_logits(centers, centers, EXAMPLES, LABELS, right).argmax(1).tolist() == [0, 1, 2]


def test_one_or_two_examples_a_label_cannot_choose() -> None:
    for labels in ([0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 1]):
        chosen = choose_retrieval(TEXTS, EXAMPLES[:4], torch.tensor(labels))
        assert (chosen == Retrieval()) == (labels != [0, 0, 0, 1])
    assert choose_retrieval(TEXTS, EXAMPLES[:1], torch.tensor([0])) == Retrieval()


@pytest.mark.numeric
def test_centers_take_out_what_images_and_what_texts_have_in_common() -> None:
    offset = 3 * unit(1, 11)
    images = torch.nn.functional.normalize(EXAMPLES + offset, dim=1)
    centers = Centers.of(TEXTS, images)
    close(centers.images(images).norm(dim=1).numpy(), torch.ones(9).numpy(), "a norm in float32", atol=10 * EPS)
    before, after = images @ images.T, centers.images(images) @ centers.images(images).T
    assert before.mean() > 0.7
    assert after.mean().abs() < 0.1
    alone = Centers.of(TEXTS[:1], images[:1])
    close(alone.images(images[:1]), images[:1], "a norm in float32", atol=10 * EPS)
    close(alone.texts(TEXTS[:1]), TEXTS[:1], "a norm in float32", atol=10 * EPS)


@pytest.mark.numeric
def test_tip_adapters_form() -> None:
    found = tip_adapter_logits(QUERIES, TEXTS, EXAMPLES, LABELS, 30.0, alpha=2.0, sharpness=5.5)
    queries, examples, texts = QUERIES.double(), EXAMPLES.double(), TEXTS.double()
    onehot = torch.nn.functional.one_hot(LABELS, 4).double()
    expected = 2.0 * torch.exp(-5.5 * (1 - queries @ examples.T)) @ onehot + 30.0 * queries @ texts.T
    close(found.numpy(), expected.numpy(), "30 times the error of a cosine", atol=30 * 20 * EPS)
