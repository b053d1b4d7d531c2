"""Labels, captions and colors of the pictograms, the hash that compares drawings, and sources.toml."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import margins
import numpy as np
import pytest
from captions import DARK, LIGHT, Choice, Emoji, Named, coloring, common_ends, icon_captions, named, without_tone
from near import CELLS, ink_of, least_distances, perceptual_hash
from numpy.typing import NDArray
from pictogram_packages import SCRIPTS, icon_set, write_packages
from sources import PERMISSIVE, read_sources

from cloob_cli import assets
from cloob_cli.errors import RecipeError

SHIPPED = SCRIPTS / "sources.toml"


@pytest.mark.parametrize(
    ("name", "suffixes", "numbered", "expected"),
    [
        ("home-1-line", {"line": "Line", "fill": "Fill"}, False, Named("home 1")),
        ("home-1-fill", {"line": "Line", "fill": "Fill"}, False, Named("home 1", "fill")),
        ("exercise", {"": "Filled", "outline": "Outline"}, False, Named("exercise", "filled")),
        ("circle-duotone", {"duotone": "BoldDuotone"}, False, Named("circle", "bold duotone")),
        ("lock-32-regular", {"32-regular": "32 Regular"}, False, Named("lock")),
        ("album-outline", {}, False, Named("album", "outline")),  # `album` is there, too
        ("arrow-to-line", {}, False, Named("arrow to line")),  # `arrow-to` is not
        ("calendar-03", {}, True, Named("calendar")),
        ("first-aid-two", {}, True, Named("first aid")),
        ("dice-6", {}, False, Named("dice 6")),
        ("chart-alt", {}, False, Named("chart")),
        ("alpha-e", {}, False, Named("letter e")),
        ("numeric-5-circle", {}, False, Named("number 5 circle")),
        ("7", {}, False, Named("number 7")),
        ("x", {}, False, Named("letter x")),
    ],
)
def test_names(name: str, suffixes: dict[str, str], numbered: bool, expected: Named) -> None:
    assert named(name, suffixes, {"album"}, set(), numbered) == expected


def test_an_end_that_many_names_have_is_a_style() -> None:
    names = [*(f"thing-{letter}-solid" for letter in "abcdefghij"), "broken-heart"]
    assert common_ends(names) == {"solid", "heart"}  # of so few names, one is many
    assert named("thing-a-solid", {}, set(names), common_ends(names)) == Named("thing a", "solid")


def test_emoji_are_found_by_the_names_that_sets_give_them() -> None:
    emoji = Emoji(
        [
            {"label": "three o’clock", "hexcode": "1F552", "tags": ["time"]},
            {"label": "flag: Belarus", "hexcode": "1F1E7-1F1FE"},
            {"label": "student", "hexcode": "1F9D1", "skins": [{"label": "student: light skin tone"}]},
        ]
    )
    names = {
        "three-oclock": "three o’clock",
        "threeoclock": "three o’clock",
        "three-oclock-2": "three o’clock",
        "flag-belarus": "flag: Belarus",
        "flag-for-flag-belarus": "flag: Belarus",
        "belarus": "flag: Belarus",
        "student-light": "student: light skin tone",
        "student-light-skin-tone": "student: light skin tone",
        "unknown": None,
    }
    assert {name: emoji.label(name) for name in names} == names
    assert emoji.countries == {"by": "Belarus"}
    assert emoji.tags("three o’clock") == ["time"]
    assert without_tone("student: light skin tone") == "student"


def test_captions_of_an_icon() -> None:
    captions = icon_captions(Named("disc", "line"), ["cd", "vinyl", "music", "platinum"], ["media"], Choice("a"))
    assert captions[0] == "disc"
    assert captions[1] in {"line disc icon", "line icon of disc", "disc icon, line style"}
    tags = [*captions[2].split(", "), captions[3].removeprefix("disc, ")]
    assert sorted(tags) == ["cd", "music", "platinum", "vinyl"]
    assert icon_captions(Named("disc"), [], ["media"], Choice("a"))[2:] == ["disc, media"]


def test_choices_depend_on_the_key_alone() -> None:
    """The values stand here, so that a change that would move every image and caption is noticed."""
    choice = Choice("pictograms", "lucide", "house")
    assert [round(choice.number(), 6) for _ in range(3)] == [0.455047, 0.5066, 0.078143]
    items = list(range(10))
    assert sorted(Choice("a").some(items, 10)) == items
    assert Choice("a").some(items, 3) == Choice("a").some(items, 3)


def test_colors_are_those_that_the_caption_names() -> None:
    forms: Counter[str] = Counter()
    for number in range(4000):
        ink, ground, form = coloring(Choice("color", str(number)))
        if form:
            match = re.fullmatch(r"(.+) \{\}(?: on an? (.+) background)?", form)
            assert match is not None
            light_ink = match[1] in LIGHT and ground != (255, 255, 255) and sum(ink) > sum(ground)
            wanted = (LIGHT if light_ink else DARK)[match[1]]
            assert max(abs(a - b) for a, b in zip(ink, wanted, strict=True)) <= 12
            if match[2]:
                wanted = (DARK if light_ink else LIGHT)[match[2]]
                assert max(abs(a - b) for a, b in zip(ground, wanted, strict=True)) <= 12
        # Weighted as brightness is: even the nearest pair can be told apart.
        weights = np.array([0.299, 0.587, 0.114])
        assert abs(float(weights @ (np.array(ink) - np.array(ground)))) > 50
        forms["plain" if ink == (0, 0, 0) and ground == (255, 255, 255) else "other"] += 1
    # A share of 0.42 is meant: 1,680. The choices are fixed, so this is no matter of luck; three sigma are 94.
    assert 1680 - 94 <= forms["plain"] <= 1680 + 94


def drawing(side: int, seed: int, at: tuple[int, int] = (0, 0), canvas: int = 128) -> NDArray[np.uint8]:
    """Random strokes of 4 x 4 blocks, `side` pixels wide, somewhere on an empty canvas."""
    blocks = np.random.default_rng(seed).random((8, 8)) < 0.5
    blocks[0, 0] = blocks[-1, -1] = True
    ink = np.zeros((canvas, canvas), np.uint8)
    ink[at[1] : at[1] + side, at[0] : at[0] + side] = np.kron(blocks, np.ones((side // 8, side // 8))) * 255
    return ink


@pytest.mark.numeric
def test_the_distance_of_hashes_is_one_less_their_correlation() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (7, CELLS * CELLS), np.uint8)
    for one in hashes[:3]:
        expected = min(1 - np.corrcoef(one, other)[0, 1] for other in hashes[3:])
        # Directions are whole numbers of 1024 steps: 144 errors of 1/2048 at most, each times a value of about 1/12.
        margins.within(
            abs(least_distances(one[None], hashes[3:])[0] - expected), 2 * 144 / 2048 / 12, "rounding to 1024 steps"
        )
    assert least_distances(hashes, hashes).max() < 0.01
    assert least_distances(hashes, hashes[:0]).tolist() == [2.0] * 7


def test_a_copy_is_near_wherever_and_however_large_it_is_drawn() -> None:
    limit = read_sources(SHIPPED).limits.near
    originals = np.array([perceptual_hash(drawing(96, seed, (16, 16))) for seed in range(20)])
    for side, at in ((96, (0, 30)), (48, (70, 5)), (24, (3, 3))):
        copies = np.array([perceptual_hash(drawing(side, seed, at)) for seed in range(20)])
        assert (least_distances(copies, originals) < limit / 2).all()
        for number in range(20):
            others = np.delete(originals, number, axis=0)
            assert least_distances(copies[number : number + 1], others)[0] > 2 * limit


def test_contrast_does_not_hide_a_copy_and_flat_drawings_are_alike() -> None:
    ink = drawing(96, 1, (5, 5))
    faint = (ink // 4).astype(np.uint8)
    assert least_distances(perceptual_hash(faint)[None], perceptual_hash(ink)[None])[0] < 0.01
    flat = np.array([perceptual_hash(np.pad(np.full((side, side), 200, np.uint8), 9)) for side in (10, 40)])
    assert least_distances(flat[:1], flat[1:])[0] < 0.01
    assert least_distances(flat[:1], perceptual_hash(ink)[None])[0] > 0.9


def test_ink_is_the_distance_from_white() -> None:
    colors = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8)
    assert ink_of(colors).tolist() == [[0, 255, 255 - 76]]


def test_the_shipped_sources_are_whole() -> None:
    sources = read_sources(SHIPPED)
    assert {one.license for one in [*sources.sets, *sources.packages]} <= set(PERMISSIVE)
    assert not any(word in name for name in PERMISSIVE for word in ("GPL", "SA", "NC", "ND"))
    assert len(sources.sets) == 168
    suite = (assets.suites_folder() / "pictograms.toml").read_text(encoding="utf-8")
    assert [one.name for one in sources.evaluation] == re.findall(r'^source = "(.+)"', suite, re.MULTILINE)
    assert {one.use for one in sources.sets} == {"train", *(e.name for e in sources.evaluation if e.name != "mnist")}
    for file in SCRIPTS.iterdir():
        if file.is_file():
            assert not re.search(r"registry\.[a-z]|npmjs", file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('license = "MIT" },', 'license = "GPL-3.0" },', "license GPL-3.0 is not one of"),
        ("per_set = 2", "per_sets = 2", "unknown key 'limits.per_sets'"),
        ('kind = "icon"', 'kind = "photo"', "'sets.0.kind'"),
        ('version = "1.2.3"', 'version = "latest"', "'packages.0.version'"),
        ('integrity = "sha512-', 'integrity = "md5-', "'packages.0.integrity'"),
        ('use = "icons"', 'use = "digits"', "one package must be used for icons"),
        ('name = "lines"', 'use = "held", name = "lines"', "there is no evaluation set held"),
        ('name = "lines"', 'tags = "mdi", name = "lines"', "no package has the tags of mdi"),
        ('name = "lines"', 'name = "../lines"', "'sets.0.name'"),
        ("sets = [", "sets = [[", "Unclosed array"),
        ("sets = [", '"left_out" = [{ name = "lines", reason = "" }]\nsets = [', "the set lines stands there twice"),
    ],
)
def test_sources_are_closed_and_checked(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = write_packages(tmp_path, {"lines": (icon_set({}), {})})
    text = path.read_text(encoding="utf-8")
    assert before in text
    read_sources(path)
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(RecipeError) as problem:
        read_sources(path)
    assert said in problem.value.message
    assert "\n" not in problem.value.message


def test_a_misspelt_key_has_the_one_that_was_meant(tmp_path: Path) -> None:
    path = write_packages(tmp_path, {"lines": (icon_set({}), {})})
    path.write_text(path.read_text(encoding="utf-8").replace("per_set = 2", "per_sets = 2"), encoding="utf-8")
    with pytest.raises(RecipeError) as problem:
        read_sources(path)
    assert problem.value.hint == "did you mean 'limits.per_set'?"
