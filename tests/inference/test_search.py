"""Queries as vectors, and the rows nearest to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloob_cli.errors import UsageError
from cloob_cli.inference.search import nearest as module
from cloob_cli.inference.search.nearest import nearest
from cloob_cli.inference.search.query import either_part, image_part, text_part


@pytest.mark.parametrize(
    ("text", "content", "weight"),
    [
        ("a cat", "a cat", 1.0),
        ("a cat:0.5", "a cat", 0.5),
        ("a cat: 2", "a cat", 2.0),
        ("a cat:.25", "a cat", 0.25),
        ("16:9", "16:9", 1.0),
        ("a train at 12:30", "a train at 12:30", 1.0),
        ("keycap: star", "keycap: star", 1.0),
        ("level\\:2", "level:2", 1.0),
        ("level\\:2:0.5", "level:2", 0.5),
        (":0.5", ":0.5", 1.0),
        ("a:-1", "a:-1", 1.0),
        ("１:２", "１:２", 1.0),
    ],
)
def test_a_weight_stands_behind_the_last_colon(text: str, content: str, weight: float) -> None:
    assert text_part(text) == (content, weight)
    assert text_part(text, -1.0) == (content, -weight)


def test_wrong_parts(tmp_path: Path) -> None:
    for text, message in [("", "empty"), ("  ", "empty"), ("a:0", "above 0"), ("a:0.0", "above 0")]:
        with pytest.raises(UsageError, match=message):
            text_part(text)
    with pytest.raises(UsageError, match="no image at"):
        image_part(str(tmp_path / "none.png"))


def test_a_file_of_the_whole_name_comes_first(tmp_path: Path) -> None:
    for name in ("a.png", "b:2"):
        (tmp_path / name).touch()
    assert image_part(str(tmp_path / "a.png:0.5")) == (tmp_path / "a.png", 0.5)
    assert either_part(str(tmp_path / "b:2"), -1.0) == (tmp_path / "b:2", -1.0)
    assert either_part("snow:0.5") == ("snow", 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("top", [1, 7, 500])
def test_the_nearest_rows_are_those_of_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating], top: int
) -> None:
    """Components are multiples of 1/8, so that cosines are exact, and many are equal: the earlier row comes first."""
    monkeypatch.setattr(module, "_BLOCK", 64 * 4 * 6)  # 64 rows at a time
    generator = np.random.default_rng(0)
    rows = (generator.integers(-2, 3, (500, 6)) / 8).astype(dtype)
    query = (generator.integers(-2, 3, 6) / 8).astype(np.float32)
    scores = rows.astype(np.float64) @ query.astype(np.float64)
    expected = sorted(range(500), key=lambda number: (-scores[number], number))[:top]
    found = nearest(rows, query, top)
    assert [hit.row for hit in found] == expected
    assert [hit.score for hit in found] == scores[expected].tolist()
    bound = float(scores[expected[len(expected) // 2]])
    assert nearest(rows, query, top, bound) == [hit for hit in found if hit.score >= bound]


@pytest.mark.parametrize("top", [1, 3, 10])
def test_rows_that_are_no_numbers_are_near_to_nothing(monkeypatch: pytest.MonkeyPatch, top: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3 * 4 * 2)  # 3 rows at a time
    rows = np.array([[1, 0], [np.nan, 0], [0.5, 0], [np.inf, 0], [-np.inf, 0], [0.25, 0], [np.nan, 1]], np.float16)
    query = np.array([1, 0], np.float32)
    assert [hit.row for hit in nearest(rows, query, top)] == [0, 2, 5][:top]
    assert nearest(rows[[1, 4]], query, top) == []
    assert nearest(rows[:0], query, top) == []
