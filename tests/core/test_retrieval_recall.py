"""Places in retrieval with several captions an image, against a full sort; ties; memory."""

from __future__ import annotations

import pytest
import torch

from cloob_cli.core import retrieval_recall
from cloob_cli.core.retrieval_recall import retrieval_places
from cloob_cli.errors import NonFiniteEmbeddingsError


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def by_sorting(queries: torch.Tensor, keys: torch.Tensor, own: torch.Tensor) -> list[int]:
    """For each query the number of wrong keys before the first right one; `own` is bool [Q, K]."""
    order = (queries.double() @ keys.double().T).argsort(dim=1, descending=True)
    return own.gather(1, order).int().argmax(dim=1).tolist()


@pytest.mark.parametrize(("images", "captions"), [(2, 1), (60, 1), (60, 5), (300, 3)])
def test_places_equal_a_full_sort(images: int, captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_recall, "_QUERIES", 64)
    monkeypatch.setattr(retrieval_recall, "_KEYS", 50)
    # An order in which no two scores that are compared are nearer than 2e-5: rounding decides about ties of 1e-6.
    order = torch.randperm(images * captions, generator=torch.Generator().manual_seed(8))
    owners = torch.arange(images).repeat_interleave(captions)[order]
    pictures = unit(images, 16, 0)
    texts = torch.nn.functional.normalize(pictures[owners] + 1.2 * unit(images * captions, 16, 1), dim=1)
    to_text, to_image = retrieval_places(pictures, texts, owners, 10)
    own = owners[None, :] == torch.arange(images)[:, None]
    for found, expected in (
        (to_text, by_sorting(pictures, texts, own)),
        (to_image, by_sorting(texts, pictures, own.T)),
    ):
        assert found.against.tolist() == [min(place, 10) for place in expected]
        assert found.ties == 0
        assert 0 < found.hits(1).double().mean() <= 1


def test_ties_count_against_the_model() -> None:
    """Two of four captions are equal: one of the two images is as near to both, the other at right angles to all."""
    images = torch.eye(4)
    texts = torch.eye(4)[[0, 0, 2, 3]]
    to_text, to_image = retrieval_places(images, texts, torch.arange(4))
    assert to_text.against.tolist() == [1, 3, 0, 0]  # image 1 is as far from all texts as from its own
    assert to_text.in_favor.tolist() == [0, 0, 0, 0]
    assert to_image.against.tolist() == [0, 3, 0, 0]
    assert to_text.ties == 2


def test_a_collapsed_model_finds_nothing() -> None:
    same = unit(1, 8, 3).expand(40, 8)
    to_text, to_image = retrieval_places(same, same, torch.arange(40))
    for found in (to_text, to_image):
        assert not found.hits(10).any()
        assert found.ties == 40


def test_equal_captions_of_one_image_are_no_ties() -> None:
    images = unit(3, 8, 4)
    to_text, to_image = retrieval_places(images, images.repeat_interleave(3, 0), torch.arange(3).repeat_interleave(3))
    assert to_text.hits(1).all()
    assert to_image.hits(1).all()
    assert to_text.ties == to_image.ties == 0


def test_what_has_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="do not match"):
        retrieval_places(unit(3, 4, 0), unit(2, 4, 0), torch.tensor([0, 1]))
    broken = unit(3, 4, 0)
    broken[1, 1] = torch.inf
    with pytest.raises(NonFiniteEmbeddingsError):
        retrieval_places(broken, broken, torch.arange(3))
