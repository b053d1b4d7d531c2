"""Texts that are cut, and labels that become equal."""

from __future__ import annotations

import pytest
from tiny_model import save_tiny_model

import cloob_cli
from cloob_cli.core.model import CloobModel
from cloob_cli.inference.labels import Label
from cloob_cli.inference.text_checks import count_cut, label_tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CloobModel:
    """Its context has 12 tokens: 10 digits between start and end."""
    return cloob_cli.load(str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")), device="cpu")


def labels(*names: str) -> list[Label]:
    return [Label(name, (name,)) for name in names]


def test_texts_that_just_fit_are_not_cut(model: CloobModel) -> None:
    assert count_cut(model, ["1234567890", "12345678901", "", "a" * 500]) == 2


def test_labels_that_differ_only_behind_the_cut_are_alike(model: CloobModel) -> None:
    found = label_tokens(model, labels("123456789 0 1", "cat", "12345678902", "dog", "1234567890"), ["{c}"])
    assert found.alike == [["123456789 0 1", "12345678902", "1234567890"]]
    assert (found.texts, found.cut) == (5, 2)


def test_labels_that_are_cleaned_to_the_same_text_are_alike(model: CloobModel) -> None:
    found = label_tokens(model, labels("Cat", "dog", "cat", "c\u00adat"), ["{c}", "a {c}"])
    assert found.alike[0][:2] == ["Cat", "cat"]
    assert (found.texts, found.cut) == (8, 0)


def test_synonyms_tell_labels_apart(model: CloobModel) -> None:
    found = label_tokens(model, [Label("Cat", ("Cat", "kitten")), Label("cat", ("cat",))], ["{c}"])
    assert found.alike == []
    same = label_tokens(model, [Label("Cat", ("Cat", "kitten")), Label("kitten", ("kitten", "CAT"))], ["{c}"])
    assert same.alike == [["Cat", "kitten"]]
