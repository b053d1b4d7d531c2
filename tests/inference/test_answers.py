"""Answers from scores: rejection, several labels, label trees."""

from __future__ import annotations

import torch

from cloob_cli.inference.answers import Answers, Rules, further_names, stored_threshold
from cloob_cli.inference.labels import Label
from cloob_cli.inference.result_rows import Classified
from cloob_cli.inference.scoring import Scorer

TREE = [
    Label("robin", ("robin",), ("animal", "bird")),
    Label("crane", ("crane",), ("animal", "bird")),
    Label("dog", ("dog",), ("animal",)),
    Label("roof", ("roof",)),
]
CLASSES = torch.eye(4, 5)  # the fifth axis is far from every label


def answer(image: list[float], rules: Rules, labels: list[Label] = TREE, inv_tau: float = 10.0) -> Classified:
    embeddings = torch.nn.functional.normalize(torch.tensor([image]), dim=1)
    answers = Answers(labels, rules, CLASSES, inv_tau)
    [row] = answers.rows(["a.png"], embeddings, Scorer(CLASSES, inv_tau)(embeddings), top_k=2)
    assert list(row.further) == further_names(rules, labels)
    return row


def test_a_sure_leaf_answers_for_itself() -> None:
    row = answer([1.0, 0, 0, 0, 0], Rules())
    assert (row.label.label, row.further) == ("robin", {"decided_by": "leaf"})
    assert row.label == row.top[0]


def test_an_unsure_leaf_rolls_up_to_the_nearest_sure_ancestor() -> None:
    row = answer([1.0, 0.95, 0, 0, 0], Rules(least=0.7))
    assert (row.label.label, row.further["decided_by"]) == ("bird", "ancestor")
    assert row.top[0].label == "robin"
    assert row.label.probability > 0.99  # of robin and crane together
    assert row.label.cosine == row.top[0].cosine
    higher = answer([1.0, 0.9, 0.95, 0, 0], Rules(least=0.9))
    assert (higher.label.label, higher.further["decided_by"]) == ("animal", "ancestor")


def test_where_no_ancestor_is_sure_the_best_leaf_answers_or_nobody() -> None:
    image = [1.0, 0.9, 0.9, 1.01, 0]
    row = answer(image, Rules(least=0.9))
    assert (row.label.label, row.further["decided_by"]) == ("roof", "unsure")
    unknown = answer(image, Rules(unknown="other", threshold=9.0, least=0.9))
    assert (unknown.label.label, unknown.further["decided_by"]) == ("other", "unsure")


def test_a_rejected_image_is_unknown_whatever_its_best_label() -> None:
    for method in ("energy", "cosine"):
        rules = Rules(unknown="other", rejection=method, threshold=0.5)  # type: ignore[arg-type]
        far, near = answer([0.1, 0, 0, 0, 1.0], rules), answer([1.0, 0, 0, 0, 0.1], rules)
        assert (far.label.label, far.further["decided_by"]) == ("other", "rejection")
        assert far.top[0].label == "robin"
        assert near.label.label == "robin"
        assert far.further["rejection"] > 0.5 > near.further["rejection"]


def test_without_a_tree_the_best_label_answers() -> None:
    flat = [Label(name, (name,)) for name in "abcd"]
    assert answer([1.0, 0.9, 0, 0, 0], Rules(), flat).further == {}
    known = answer([1.0, 0.9, 0, 0, 0], Rules(unknown="other", threshold=0.5), flat)
    assert (known.label.label, known.further["decided_by"]) == ("a", "best")


def test_several_labels_are_judged_each_by_itself() -> None:
    row = answer([1.0, 0, 0, 0.9, 0], Rules(several=True, level=0.4))
    assert [one["label"] for one in row.further["labels"]] == ["robin", "roof"]
    assert row.further["decided_by"] == "threshold"
    alone = answer([1.0, 0, 0, 0.0, 0], Rules(several=True, level=0.4))
    assert [one["label"] for one in alone.further["labels"]] == ["robin"]
    none = answer([0.1, 0, 0, 0, 1.0], Rules(several=True, level=0.4, unknown="other"))
    assert (none.label.label, none.further["labels"], none.further["decided_by"]) == ("other", [], "rejection")
    best = answer([0.1, 0, 0, 0, 1.0], Rules(several=True, level=0.4))
    assert (best.label.label, best.further["labels"], best.further["decided_by"]) == ("robin", [], "best")


def test_a_conformal_set_holds_what_is_likely_enough_and_never_nothing() -> None:
    row = answer([1.0, 0.9, 0, 0, 0], Rules(conformal=0.1))
    assert row.further["set"] == ["robin", "crane"]
    assert answer([1.0, 0.9, 0, 0, 0], Rules(conformal=0.99)).further["set"] == ["robin"]


def test_a_temperature_flattens_probabilities_and_keeps_the_order() -> None:
    sharp, flat = answer([1.0, 0.9, 0, 0, 0], Rules()), answer([1.0, 0.9, 0, 0, 0], Rules(temperature=10.0))
    assert sharp.top[0].probability > flat.top[0].probability
    assert [one.label for one in sharp.top] == [one.label for one in flat.top]


def test_the_threshold_of_stored_images_leaves_each_out() -> None:
    patterns = torch.nn.functional.normalize(torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    found = stored_threshold(patterns, 20, "cosine", 10.0)
    assert found is not None
    nearest = [float((patterns[i] @ torch.cat([patterns[:i], patterns[i + 1 :]]).T).max()) for i in range(20, 60)]
    assert sum(1 - cosine <= found + 1e-6 for cosine in nearest) == 38  # 95 % of the 40 images; the 20 texts only count
    assert stored_threshold(patterns, 20, "softmax", 10.0) is None
    assert stored_threshold(patterns[:1], 0, "cosine", 10.0) is None
