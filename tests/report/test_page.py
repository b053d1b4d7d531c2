"""Pieces of pages: JSON within a script, links, the policy's hashes."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.inference.output_paths import made_by
from cloob_cli.report.gallery import Gallery, Item, open_gallery
from cloob_cli.report.links import link_to
from cloob_cli.report.page import script_json


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_json_in_a_script_is_the_value_and_cannot_end_the_script(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&'\u2028\u2029")
    assert text.isascii()


@pytest.mark.parametrize(
    ("file", "page", "link"),
    [
        ("images/a b.png", "report.html", "images/a%20b.png"),
        ("a.png", "pages/report.html", "../a.png"),
        ("javascript:alert(1)", "report.html", "javascript%3Aalert%281%29"),
        ("x/?#%.png", "x/report.html", "%3F%23%25.png"),
    ],
)
def test_links_are_relative_and_have_no_scheme(file: str, page: str, link: str, tmp_path: Path) -> None:
    assert link_to(tmp_path / file, tmp_path / page) == link
    assert urlsplit(link).scheme == ""


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes are POSIX's")
def test_links_to_names_of_any_bytes(tmp_path: Path) -> None:
    name = bytes(set(range(1, 256)) - {ord("/")})
    link = link_to(tmp_path / os.fsdecode(name), tmp_path / "report.html")
    assert link.isascii()
    assert unquote_to_bytes(link) == name


def test_the_policy_has_the_hashes_of_the_only_style_and_script(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with open_gallery(page, Gallery("title")) as gallery:
        gallery.add(Item("a.png"))
    text = page.read_text("utf-8")
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert made_by(page) == "report"


def test_a_page_that_fails_leaves_the_earlier_one_and_nothing_beside(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("earlier")

    def write_half() -> None:
        with open_gallery(page, Gallery("title")) as gallery:
            gallery.add(Item("a.png"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert page.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_same_images_make_the_same_page(tmp_path: Path) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        with open_gallery(tmp_path / name, Gallery("title", ["score"])) as gallery:
            gallery.add(Item("a.png", b"RIFF", "\udc80", [0.123456789]))
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert b"0.123457" in pages[0]
