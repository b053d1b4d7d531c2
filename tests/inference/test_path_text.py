"""Paths as text: every format can hold them, and no two paths look alike."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.inference.result_rows import Choice, Classified, open_rows
from cloob_cli.path_text import path_of, path_text

posix = pytest.mark.skipif(os.name != "posix", reason="file names of any bytes")
NAMES = st.lists(st.sampled_from([b"\\", b"x", b"e9", b"c3", b"7f", b"\xe9", b"\xc3\xa9", b"a", b"\xff"]), max_size=8)


def bytes_of(text: str) -> bytes:
    """Decode as a reader of the docs would: an odd number of backslashes before xNN marks a byte."""

    def restore(found: re.Match[str]) -> bytes:
        backslashes, digits = len(found[1]), found[2]
        byte = bytes([int(digits, 16)]) if backslashes % 2 else f"x{digits}".encode()
        return b"\\" * (backslashes // 2) + byte

    parts, end = [], 0
    for found in re.finditer(r"(\\+)x([89a-f][0-9a-f])", text):
        parts += [text[end : found.start()].encode(), restore(found)]
        end = found.end()
    return b"".join([*parts, text[end:].encode()])


@posix
@given(NAMES)
def test_a_path_can_be_told_from_its_text(pieces: list[bytes]) -> None:
    name = b"".join(pieces) or b"a"
    text = path_text(Path(os.fsdecode(name)))
    assert bytes_of(text) == name
    text.encode("utf-8")  # which JSON and Parquet need
    assert os.fsencode(path_of(text)) == os.fsencode(Path(os.fsdecode(name)))


@posix
def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("photos/日本語.jpg", "a\\b.jpg", "\\x41.jpg", "tab\there"):
        assert path_text(Path(name)) == name
    assert path_text(Path(os.fsdecode(b"caf\xe9.jpg"))) == r"caf\xe9.jpg"
    assert path_text(Path(r"caf\xe9.jpg")) == r"caf\\xe9.jpg"


def test_a_name_with_a_carriage_return_is_one_cell_of_a_csv_file(tmp_path: Path) -> None:
    names = ["plain.jpg", "carriage\rreturn.jpg", "line\nfeed.jpg", "both\r\nof, them.jpg"]
    with open_rows(tmp_path / "out.csv", ".csv", 1, {}) as write:
        write(Classified(name, [Choice("cat", 0.5, 0.25)]) for name in names)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[1:] == [[name, "cat", "0.5", "0.25"] for name in names]
