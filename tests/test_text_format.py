"""Escaped text, first lines of errors, counts, lengths of time."""

from __future__ import annotations

import pytest

from cloob_cli.errors import Failure, ImageError, one_line
from cloob_cli.text_format import counted, duration, first_line, os_reason, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 結果", "plain ünïcode 結果"),
        ("two\nlines\tand a tab\r", "two\\nlines\\tand a tab\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202ereversed", "\\u202ereversed"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\udce9"),
    ],
)
def test_printable_text_fits_on_one_line(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  \n  third"), "third"),
        (ValueError(), "ValueError"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
    ],
)
def test_first_line(problem: Exception, line: str) -> None:
    assert first_line(problem) == line


def test_a_count_with_its_noun() -> None:
    assert [counted(count, "image") for count in (0, 1, 2, 2000)] == ["0 images", "1 image", "2 images", "2,000 images"]
    assert [counted(count, "query", "queries") for count in (1, 2)] == ["1 query", "2 queries"]


def test_the_reason_of_an_error_of_the_system() -> None:
    assert os_reason(FileNotFoundError(2, "No such file or directory", "a.png")) == "no such file or directory"
    assert os_reason(OSError("Truncated")) == "truncated"


def test_one_line_names_the_kind_of_an_unexpected_error() -> None:
    assert one_line(ValueError("bad\nworse")) == "ValueError: bad"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ImageError("too large")) == "too large"


def test_a_failure_is_a_name_and_a_reason() -> None:
    assert Failure("a.png", "truncated")._asdict() == {"name": "a.png", "reason": "truncated"}


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0, 6.6, 599.4, 3722)] == ["0:00", "0:07", "9:59", "1:02:02"]
