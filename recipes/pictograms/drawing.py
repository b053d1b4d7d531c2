"""Render one SVG drawing to 64 x 64 pixels: check it first, then resvg, then few colors and lossless WebP.

A drawing may consist of shapes, gradients, masks, clips and simple filters, and refer to its own parts. Whatever else
SVG knows (text, images, scripts, styles, animations, entities, references to anything outside) is refused, so that
nothing is fetched, no font of this machine is used and no drawing can take long. What is refused raises `Refused`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
MARGIN = 2  # pixels on each side
COVERAGE_LEVELS = 7  # one-color drawings: steps of coverage between background and drawing
_LONGEST = 1_000_000  # characters; the longest of Iconify's permissive sets has 900,000
_MOST_ELEMENTS = 5_000  # with the elements that <use> repeats
_DEEPEST = 60
_LARGEST_SIDE = 100_000.0  # user units of a view box; the largest of Iconify's has 13,547
_LARGEST_RATIO = 40.0  # of the sides of a view box: less than 2 pixels are left of the shorter one
_MOST_FILTERS = 64
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_ELEMENTS = frozenset(
    [
        "svg",
        "g",
        "path",
        "circle",
        "rect",
        "ellipse",
        "line",
        "polyline",
        "polygon",
        "defs",
        "use",
        "symbol",
        "title",
        "desc",
        "linearGradient",
        "radialGradient",
        "stop",
        "clipPath",
        "mask",
        "filter",
        "feGaussianBlur",
        "feFlood",
        "feBlend",
        "feColorMatrix",
        "feOffset",
        "feComposite",
        "feMerge",
        "feMergeNode",
    ]
)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?$")

Pixels = NDArray[np.uint8]


class Refused(Exception):
    """A drawing that is not rendered; the text says why in a few words that many drawings share."""


def view_box(icon: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, width and height of an Iconify icon; `defaults` are its set's. Raises Refused."""
    box = []
    for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16)):
        value = icon.get(key, defaults.get(key, default))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Refused("view box")
        box.append(float(value))
    left, top, width, height = box
    _check_box(left, top, width, height)
    return left, top, width, height


def whole_svg(body: object, box: tuple[float, float, float, float]) -> str:
    """A checked SVG document of `SIZE` pixels around a drawing's inner markup. Raises Refused."""
    if not isinstance(body, str) or not body.strip():
        raise Refused("no markup")
    if len(body) > _LONGEST:
        raise Refused("too long")
    if "<!" in body or "<?" in body:
        raise Refused("entities, comments or instructions")  # before any XML parser sees them
    inner = SIZE - 2 * MARGIN
    left, top, width, height = box
    svg = (
        f'{_HEAD} width="{SIZE}" height="{SIZE}" viewBox="0 0 {SIZE} {SIZE}"><svg x="{MARGIN}" y="{MARGIN}" '
        f'width="{inner}" height="{inner}" viewBox="{left:g} {top:g} {width:g} {height:g}">{body}</svg></svg>'
    )
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError):
        raise Refused("no well-formed XML") from None
    if len(root) != 1:
        raise Refused("no well-formed XML")  # markup that leaves its frame
    _check_tree(root)
    return svg


def _check_box(left: float, top: float, width: float, height: float) -> None:
    if min(width, height) <= 0 or max(map(abs, (left, top, width, height))) > _LARGEST_SIDE:
        raise Refused("view box")
    if max(width, height) > _LARGEST_RATIO * min(width, height):
        raise Refused("view box")


def _check_tree(root: ElementTree.Element) -> None:
    by_id: dict[str, ElementTree.Element] = {}
    filters = 0
    level = [root]
    for depth in range(_DEEPEST + 1):
        for element in level:
            _check_element(element)
            if (name := element.get("id")) is not None:
                by_id.setdefault(name, element)
            filters += element.get("filter") is not None
        level = [child for element in level for child in element]
        if depth == _DEEPEST and level:
            raise Refused("nested too deeply")
    sizes: dict[ElementTree.Element, int] = {}
    if _expanded(root, by_id, sizes, frozenset()) > _MOST_ELEMENTS:
        raise Refused("too many elements")
    if filters > _MOST_FILTERS:
        raise Refused("too many filters")


def _check_element(element: ElementTree.Element) -> None:
    namespace, _, tag = element.tag.rpartition("}")
    if namespace not in {"{http://www.w3.org/2000/svg", ""} or tag not in _ELEMENTS:
        raise Refused("animation" if tag.startswith("animate") or tag == "set" else "element that is not allowed")
    for key, value in element.attrib.items():
        if key in _HREFS and not value.startswith("#"):
            raise Refused("reference to something outside")
        if re.search(r"url\s*\((?!\s*['\"]?#)", value, re.IGNORECASE) or "@import" in value or "\\" in value:
            raise Refused("reference to something outside")
        if key.lower().startswith("on"):
            raise Refused("script")
        if key == "viewBox":
            numbers = value.replace(",", " ").split()
            if len(numbers) != 4 or not all(map(_NUMBER.match, numbers)):
                raise Refused("view box")
            _check_box(*map(float, numbers))


def _expanded(
    element: ElementTree.Element,
    by_id: Mapping[str, ElementTree.Element],
    sizes: dict[ElementTree.Element, int],
    within: frozenset[ElementTree.Element],
) -> int:
    """The number of elements that are drawn for one: itself, those inside, and what is referred to, each time anew."""
    if element in within or len(within) > 4 * _DEEPEST:
        raise Refused("reference in a circle")
    if element in sizes:
        return sizes[element]
    inside = within | {element}
    count = 1 + sum(_expanded(child, by_id, sizes, inside) for child in element)
    for key, value in element.attrib.items():
        names = [value[1:]] if key in _HREFS else re.findall(r"url\s*\(\s*['\"]?#([^'\")]+)", value)
        count += sum(_expanded(by_id[name], by_id, sizes, inside) for name in names if name in by_id)
    sizes[element] = count
    return count


def is_one_color(body: str) -> bool:
    """True for markup without any color but `currentColor`: it may be drawn in any color."""
    if "currentColor" not in body or "<image" in body:
        return False
    colors = re.findall(r"(?:fill|stroke|stop-color|flood-color|color)\s*[=:]\s*[\"']?\s*([^\"';>]+)", body)
    return all(color.strip() in {"currentColor", "none", "inherit", "transparent"} for color in colors)


def rendered(svg: str) -> Pixels:
    """RGBA pixels [SIZE, SIZE, 4], not premultiplied, of a checked document. Raises Refused."""
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg.replace("currentColor", "#000"), skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(png)))
        image.load()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # a panic of resvg is not an Exception
        raise Refused("not rendered") from None
    if image.size != (SIZE, SIZE):
        raise Refused("not rendered")
    pixels = np.asarray(image.convert("RGBA"))
    if not (pixels[..., 3] > 24).any():
        raise Refused("empty")
    return pixels


def two_colors(pixels: Pixels, ink: tuple[int, int, int], ground: tuple[int, int, int]) -> Pixels:
    """The coverage of RGBA pixels, in few steps, as RGB pixels between the colors `ground` and `ink`."""
    share = np.rint(pixels[..., 3:] * (COVERAGE_LEVELS / 255)) / COVERAGE_LEVELS
    mixed: NDArray[np.float64] = share * np.array(ink) + (1 - share) * np.array(ground)
    return np.rint(mixed).astype(np.uint8)


def on_white(pixels: Pixels, colors: int) -> Pixels:
    """RGBA pixels on a white ground, as RGB pixels of at most `colors` colors."""
    ground = Image.new("RGBA", (SIZE, SIZE), "white")
    ground.alpha_composite(Image.fromarray(pixels))
    few = ground.convert("RGB").quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return np.asarray(few.convert("RGB"))


def webp(pixels: Pixels) -> bytes:
    """RGB pixels as lossless WebP."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=75, method=3)
    return file.getvalue()
