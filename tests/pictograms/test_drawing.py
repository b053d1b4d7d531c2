"""Drawings that are not what they seem are refused before they are rendered, each for its own reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictogram_packages import icon_set, write_packages
from PIL import Image

pytest.importorskip("resvg_py")
import prepare
from drawing import (
    Refused,
    is_one_color,
    on_white,
    rendered,
    two_colors,
    view_box,
    webp,
    whole_svg,
)

BOX = (0.0, 0.0, 24.0, 24.0)
DOT = "<circle cx='12' cy='12' r='6'/>"
BOMB = "<!DOCTYPE svg [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;'>]>"
USES = "".join(
    f"<g id='g{level}'>" + f"<use href='#g{level - 1}'/>" * 10 + "</g>" for level in range(1, 10)
)  # 10 to the power of 9 dots


HOSTILE = {
    "entity bomb": (BOMB + DOT, "entities, comments or instructions"),
    "undeclared entity": ("<title>&lol;</title>" + DOT, "no well-formed XML"),
    "instruction": ("<?xml-stylesheet href='http://127.0.0.1/a.css'?>" + DOT, "entities, comments or instructions"),
    "image of a server": (
        "<image href='http://127.0.0.1:9/a.png' width='9' height='9'/>",
        "element that is not allowed",
    ),
    "use of a file": (DOT + "<use href='file:///etc/passwd#a'/>", "reference to something outside"),
    "xlink to a server": (DOT + "<use xlink:href='//127.0.0.1/a.svg#a'/>", "reference to something outside"),
    "paint of a server": ("<path fill='url(http://127.0.0.1/a#b)' d='M0 0h9v9z'/>", "reference to something outside"),
    "filter in a style": ("<g style=\"filter: URL( 'a.svg#b')\">" + DOT + "</g>", "reference to something outside"),
    "escape in a style": ("<g style='fill:u\\72l(a.svg)'>" + DOT + "</g>", "reference to something outside"),
    "entity in a style": ("<g style='fill:&#117;rl(a.svg)'>" + DOT + "</g>", "reference to something outside"),
    "style sheet": ("<style>@import 'http://127.0.0.1/a.css';</style>" + DOT, "element that is not allowed"),
    "script": ("<script>while (1);</script>" + DOT, "element that is not allowed"),
    "handler": ("<g onload='alert(1)'>" + DOT + "</g>", "script"),
    "foreign object": ("<foreignObject><p xmlns='http://www.w3.org/1999/xhtml'/></foreignObject>", "element that"),
    "text": ("<text y='12'>a font of this machine</text>", "element that is not allowed"),
    "animation": (DOT + "<animate attributeName='r' to='0'/>", "animation"),
    "uses of uses": (f"<g id='g0'>{DOT}</g>{USES}", "too many elements"),
    "use of itself": ("<g id='a'>" + DOT + "<use href='#a'/></g>", "reference in a circle"),
    "pattern in a circle": ("<mask id='a'><path mask='url(#a)' d='M0 0h9v9z'/></mask>", "reference in a circle"),
    "depth": ("<g>" * 500 + DOT + "</g>" * 500, "nested too deeply"),
    "length": (f"<desc>{'x' * 2_000_000}</desc>{DOT}", "too long"),
    "many elements": (DOT * 6000, "too many elements"),
    "many filters": ("<filter id='f'><feGaussianBlur/></filter>" + "<g filter='url(#f)'/>" * 100, "too many filters"),
    "huge inner view box": ("<svg viewBox='0 0 1e9 1e9'>" + DOT + "</svg>", "view box"),
    "wrong inner view box": ("<symbol viewBox='0 0 nan 1'>" + DOT + "</symbol>", "view box"),
    "leaves its frame": ("</svg>" + DOT + "<svg>", "no well-formed XML"),
    "ends the document": ("</svg></svg><svg><svg>", "no well-formed XML"),
    "not closed": ("<g>" + DOT, "no well-formed XML"),
    "nothing": (" ", "no markup"),
    "a number": (7, "no markup"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_markup_is_refused(name: str) -> None:
    body, reason = HOSTILE[name]
    with pytest.raises(Refused, match=reason):
        whole_svg(body, BOX)


@pytest.mark.parametrize(
    "box",
    [
        {"width": 1e9, "height": 1e9},
        {"width": 0},
        {"height": -5},
        {"width": 5000, "height": 24},
        {"left": 1e7},
        {"width": float("inf")},
        {"width": float("nan")},
        {"width": "24"},
        {"width": True},
    ],
)
def test_a_view_box_that_cannot_be_meant_is_refused(box: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="view box"):
        view_box(box, {"width": 24, "height": 24})


def test_what_draws_nothing_is_refused() -> None:
    with pytest.raises(Refused, match="empty"):
        rendered(whole_svg("<path d='M0 0'/>", BOX))


def test_own_parts_may_be_used() -> None:
    body = (
        "<defs><linearGradient id='a'><stop stop-color='#f00'/></linearGradient><g id='b'>"
        + DOT
        + "</g><clipPath id='c'><path d='M0 0h24v24H0z'/></clipPath></defs>"
        + "<g clip-path='url(#c)' fill=\"url('#a')\"><use xlink:href='#b'/></g>"
    )
    pixels = rendered(whole_svg(body, BOX))
    assert pixels[32, 32].tolist() == [255, 0, 0, 255]


def test_the_box_is_fitted_into_60_pixels_in_the_middle() -> None:
    pixels = rendered(
        whole_svg("<path d='M2 4h24v12H2z'/>", view_box({"left": 2, "top": 4, "height": 12}, {"width": 24}))
    )
    rows, columns = np.nonzero(pixels[..., 3])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 46, 2, 61)


def test_one_color() -> None:
    assert is_one_color("<path fill='currentColor' d='M0 0h9'/>")
    assert is_one_color("<g fill='none' stroke='currentColor'><path opacity='.5' d='M0 0h9'/></g>")
    assert not is_one_color("<path fill='currentColor' d='M0 0h9'/><path fill='#f00' d='M0 0h9'/>")
    assert not is_one_color("<g style='stroke: red' fill='currentColor'/>")
    assert not is_one_color(DOT)


def test_colors_lie_between_ink_and_ground_in_eight_steps() -> None:
    pixels = rendered(whole_svg(DOT, BOX))
    image = two_colors(pixels, (200, 0, 0), (0, 0, 100))
    colors = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    assert colors <= {(round(200 * k / 7), 0, round(100 - 100 * k / 7)) for k in range(8)}
    assert image[0, 0].tolist() == [0, 0, 100]
    assert image[32, 32].tolist() == [200, 0, 0]


def test_few_colors_survive_webp_unchanged() -> None:
    gradient = "<linearGradient id='a'><stop stop-color='red'/><stop offset='1' stop-color='blue'/></linearGradient>"
    image = on_white(rendered(whole_svg(gradient + "<path fill='url(#a)' d='M0 0h24v24H0z'/>", BOX)), 32)
    assert 8 < len(np.unique(image.reshape(-1, 3), axis=0)) <= 32
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(webp(image))).convert("RGB")), image)


def test_hostile_drawings_of_a_set_are_counted_and_the_others_kept(tmp_path: Path) -> None:
    """Through the whole program, from a package that holds them."""
    import json

    wanted = ("entity bomb", "use of a file", "paint of a server", "uses of uses", "huge inner view box")
    icons: dict[str, Any] = {name.replace(" ", "-"): HOSTILE[name][0] for name in wanted}
    icons["huge-box"] = {"body": DOT, "width": 1e12, "height": 1e12}
    icons["dot"] = DOT
    sources = write_packages(tmp_path, {"mixed": (icon_set(icons), {})})
    out = tmp_path / "out"
    assert prepare.main([str(out), "--sources", str(sources), "--packages", str(tmp_path), "--quiet"]) == 0
    summary = json.loads((out / "sources.json").read_text(encoding="utf-8"))["sets"][0]
    assert summary["refused"] == {
        "entities, comments or instructions": 1,
        "reference to something outside": 2,
        "too many elements": 1,
        "view box": 2,
    }
    assert (summary["chosen"], summary["kept"]) == (7, 1)
