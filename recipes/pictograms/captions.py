"""Words for drawings: labels and styles from icon names, labels of emoji and flags, and captions from both.

All choices come from a `Choice`, random numbers that depend on the drawing's name alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

# Ends of names that are styles; sets with a table of styles of their own use that first. "" is no style of its own.
_STYLES = {
    "outline": "outline", "outlined": "outline", "rounded": "rounded", "sharp": "sharp", "fill": "fill",
    "filled": "filled", "solid": "solid", "bold": "bold", "thin": "thin", "light": "light", "duotone": "duotone",
    "duo": "duo", "linear": "linear", "broken": "broken", "twotone": "two tone", "flat": "flat",
    "expressive": "expressive", "line": "", "regular": "", "remix": "", "dark": "",
}  # fmt: skip
_NO_STYLE = {"regular", "line", "remix", "10", "12", "14", "16", "20", "24", "28", "32", "48", "24px", "1x1", "4x3"}
_VARIANTS = {"alt", "variant", "o", "wordmark", "icon"}
_SIZES = {"10", "12", "14", "16", "20", "24", "28", "32", "48", "96"}
_ORDINALS = {"one", "two", "three", "four", "five", "six"}
_TONE = re.compile(r"(:|,)? ?(light|medium-light|medium|medium-dark|dark) skin tone")
_TONE_OF_NAME = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?$")

# Colors with the half-width within which they vary, and the grounds that each of the two groups is drawn on.
DARK = {
    "black": (10, 10, 10), "dark gray": (70, 70, 70), "red": (195, 25, 30), "dark red": (125, 10, 20),
    "orange": (205, 90, 5), "brown": (110, 60, 20), "olive": (100, 100, 10), "green": (20, 125, 45),
    "dark green": (10, 75, 35), "teal": (0, 105, 110), "blue": (25, 70, 190), "navy blue": (20, 30, 100),
    "indigo": (65, 15, 130), "purple": (110, 25, 140), "pink": (200, 30, 115),
}  # fmt: skip
LIGHT = {
    "white": (255, 255, 255), "light gray": (226, 226, 226), "peach": (255, 220, 190), "beige": (245, 234, 212),
    "yellow": (255, 232, 90), "light yellow": (255, 248, 185), "light green": (208, 245, 205), "mint": (198, 246, 228),
    "sky blue": (150, 208, 248), "light blue": (200, 228, 255), "lavender": (226, 216, 250), "pink": (255, 208, 220),
}  # fmt: skip
_DARK_SPREAD, _LIGHT_SPREAD = 12, 8
# Shares of one-color drawings: black on white, a dark color on white, dark on light; the rest is light on dark.
_PLAIN, _ON_WHITE, _DARK_ON_LIGHT = 0.42, 0.63, 0.93
_COMMON = 0.05
_COLOR_NAMED = 0.18  # how often black on white is put into words
_GROUND_NAMED = 0.12  # how often a white ground is

RGB = tuple[int, int, int]


class Choice:
    """Random numbers from a key: the same for the same key, on every machine and in every version of Python."""

    def __init__(self, *key: str) -> None:
        self._key = "\x1f".join(key).encode()
        self._count = 0

    def number(self) -> float:
        """A number of [0, 1)."""
        digest = hashlib.sha256(self._key + self._count.to_bytes(4, "big")).digest()
        self._count += 1
        return int.from_bytes(digest[:6], "big") / 2**48

    def one_of(self, items: Sequence[Item]) -> Item:
        """One of the items, which must not be none."""
        return items[int(self.number() * len(items))]

    def some(self, items: Iterable[Item], count: int) -> list[Item]:
        """At most `count` different items in random order."""
        left = list(items)
        return [left.pop(int(self.number() * len(left))) for _ in range(min(count, len(left)))]


@dataclass(frozen=True)
class Named:
    """A subject and a style: "calendar blank", "light"."""

    label: str
    style: str = ""


def words(text: str) -> str:
    """A name as words: lower case, with spaces for hyphens and other marks."""
    return re.sub(r"[^a-z0-9+'’]+", " ", text.lower()).strip()


def common_ends(names: Iterable[str]) -> set[str]:
    """The last parts of names that many names of a set have: those are its styles."""
    counts = Counter(name.rpartition("-")[2] for name in names)
    return {end for end, count in counts.items() if count >= _COMMON * counts.total()}


def named(
    name: str, suffixes: Mapping[str, str], names: Container[str], common: Container[str], numbered: bool = False
) -> Named:
    """The label and the style that an icon's name says.

    Args:
        suffixes: the set's own table of ends and what they mean, as Iconify has it.
        names: all names of the set: without a table, an end is a style where the name without it is there too,
        common: or where it is one of the set's common ends.
        numbered: leave a number at the end out.
    """
    style = None
    ends = sorted((end for end in suffixes if end and name.endswith(f"-{end}")), key=len, reverse=True)
    if ends:
        name, style = name.removesuffix(f"-{ends[0]}"), _spoken(suffixes[ends[0]])
    elif "" in suffixes:
        style = _spoken(suffixes[""])
    parts = name.split("-")
    found = ""
    while len(parts) > 1:
        last, base = parts[-1], "-".join(parts[:-1])
        if last in _STYLES and style is None and not found and (base in names or last in common):
            found = _STYLES[last]
        elif not _says_nothing(last, parts, numbered):
            break
        parts.pop()
    label = words("-".join(parts))
    if numbered:
        label = re.sub(r"(?<=[a-z]{3})\d$", "", label)
    if len(label) == 1:
        label = f"{'number' if label.isdigit() else 'letter'} {label}"
    label = re.sub(r"^alpha (?=[a-z]( |$))", "letter ", label)
    return Named(re.sub(r"^numeric (?=\d)", "number ", label), found if style is None else style)


def _says_nothing(last: str, parts: Sequence[str], numbered: bool) -> bool:
    """True for the last part of a name that tells variants or sizes of one subject apart."""
    if numbered:
        return last in _VARIANTS or last in _ORDINALS or re.fullmatch(r"0?\d", last) is not None
    return (last in _VARIANTS and parts[-2] != "letter") or (last in _SIZES and parts[0] != "number")


def _spoken(title: str) -> str:
    text = words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title)).replace("outlined", "outline")
    return " ".join(word for word in text.split() if word not in _NO_STYLE and not re.fullmatch(r"\d+(x\d+)?", word))


class Emoji:
    """Labels and tags of emoji and names of countries, from emojibase's data."""

    def __init__(self, data: Sequence[Mapping[str, Any]]) -> None:
        self._labels: dict[str, str] = {}
        self._tags: dict[str, list[str]] = {}
        self.countries: dict[str, str] = {}
        for one in data:
            for entry in (one, *one.get("skins", ())):
                label = entry["label"]
                for key in (_slug(label), _slug(label).replace("-", "")):
                    self._labels.setdefault(key, label)
                self._tags[label] = [tag for tag in one.get("tags", ()) if tag]
            code = [int(part, 16) - 0x1F1E6 for part in one["hexcode"].split("-")]
            if len(code) == 2 and all(0 <= letter < 26 for letter in code):
                country = one["label"].removeprefix("flag: ")
                self.countries["".join(chr(97 + letter) for letter in code)] = country
        self._country_labels = {_slug(country): f"flag: {country}" for country in self.countries.values()}

    def label(self, name: str) -> str | None:
        """The label of an emoji that an icon's name means: None where it is none."""
        for form in (name, re.sub(r"-\d+$", "", name)):
            for slug in (
                form,
                re.sub(r"^(flag-for-)?flag-(for-)?", "flag-", form),
                _TONE_OF_NAME.sub(r"-\1-skin-tone", form),
            ):
                if slug in self._labels:
                    return self._labels[slug]
                if slug in self._country_labels:
                    return self._country_labels[slug]
        return None

    def tags(self, label: str) -> list[str]:
        """The tags of an emoji by its label."""
        return self._tags.get(label, [])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’'‘“”.!]", "", text.lower())).strip("-")


def without_tone(label: str) -> str:
    """An emoji's label without its skin tone."""
    return _TONE.sub("", label)


def icon_captions(one: Named, tags: Sequence[str], more: Sequence[str], choice: Choice) -> list[str]:
    """The captions of an icon: its label, a phrase with the style, tags, its set's category.

    Args:
        tags: other words for it.
        more: categories and names of the same drawing.
    """
    label, style = one.label, one.style
    if style:
        phrases = [f"{style} {label} icon", f"{style} icon of {label}", f"{label} icon, {style} style"]
    else:
        phrases = [f"{label} icon", f"an icon of {label}", f"a picture of {label}"]
    captions = [label, choice.one_of(phrases)]
    chosen = choice.some([tag for tag in tags if tag != label], 4)
    if chosen:
        captions.append(", ".join(chosen[:3]))
    captions += [f"{label}, {extra}" for extra in [*chosen[3:], *more] if extra and extra != label][:1]
    return captions


def emoji_captions(label: str, tags: Sequence[str], choice: Choice) -> list[str]:
    """The captions of an emoji."""
    captions = [label, choice.one_of([f"{label} emoji", f"an emoji of {label}", f"emoji: {label}"])]
    chosen = choice.some(tags, 5)
    if chosen:
        captions.append(", ".join(chosen[:3]))
    if chosen[3:]:
        captions.append(f"{without_tone(label)} {' '.join(chosen[3:])}")
    return captions


def flag_captions(country: str, emoji: bool) -> list[str]:
    """The captions of a flag; `emoji` says that it is one of a set of emoji."""
    flag = f"flag of {country}"
    return [flag, f"{country} flag emoji", country] if emoji else [flag, country, f"the national {flag}"]


def logo_captions(label: str) -> list[str]:
    """The captions of a logo."""
    return [f"{label} logo", label, f"the logo of {label}"]


def coloring(choice: Choice) -> tuple[RGB, RGB, str]:
    """Colors of ink and ground for a one-color drawing, and a form for their caption ("" or "red {} on ...")."""
    kind = choice.number()
    if kind < _PLAIN:
        texts = ["black {} on a white background", "black {}"]
        return (0, 0, 0), (255, 255, 255), choice.one_of(texts) if choice.number() < _COLOR_NAMED else ""
    if kind < _ON_WHITE:
        ink = choice.one_of([name for name in DARK if name != "black"])
        ground = " on a white background" if choice.number() < _GROUND_NAMED else ""
        return _shade(DARK[ink], _DARK_SPREAD, choice), (255, 255, 255), f"{ink} {{}}{ground}"
    if kind < _DARK_ON_LIGHT:
        ink, ground = choice.one_of(list(DARK)), choice.one_of([name for name in LIGHT if name != "white"])
        colors = _shade(DARK[ink], _DARK_SPREAD, choice), _shade(LIGHT[ground], _LIGHT_SPREAD, choice)
    else:
        ink, ground = choice.one_of(list(LIGHT)), choice.one_of([name for name in DARK if name != "pink"])
        colors = _shade(LIGHT[ink], _LIGHT_SPREAD, choice), _shade(DARK[ground], _DARK_SPREAD, choice)
    article = "an" if ground[0] in "aeiou" else "a"
    return *colors, f"{ink} {{}} on {article} {ground} background"


def _shade(color: RGB, spread: int, choice: Choice) -> RGB:
    red, green, blue = (min(255, max(0, part + round((2 * choice.number() - 1) * spread))) for part in color)
    return red, green, blue
