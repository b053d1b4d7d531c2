"""The page of `cloob eval` in a real browser: it renders, sorts, filters, obeys keys, and hostile names do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from browser import HOSTILE_NAMES, Browser, needs_browser
from PIL import Image

from cloob_cli.data.thumbnails import thumbnail
from cloob_cli.report.evaluation import Evaluation, Example, Scores, write_evaluation

pytestmark = needs_browser

HOSTILE = [*HOSTILE_NAMES, "__proto__"]
TITLES = {"acc1": "top-1", "acc5": "top-5", "text_retrieval_recall@1": "text R@1"}


def classified(right: dict[str, float], confusions: list[tuple[str, str, int, list[str]]]) -> dict[str, Any]:
    """A record with the classes `right`, of ten images each."""
    accuracy = sum(right.values()) / len(right)
    return {
        "task": "zeroshot_classification",
        "metrics": {"acc1": accuracy, "acc5": None},
        "intervals": {"acc1": [max(0.0, accuracy - 0.1), accuracy + 0.05]},
        "images": 10 * len(right),
        "per_class": [{"class": name, "images": 10, "recall": recall} for name, recall in right.items()],
        "confusions": [
            {"class": name, "predicted": taken, "count": count, "examples": examples}
            for name, taken, count, examples in confusions
        ],
    }


def example(name: str) -> Example:
    return Example(name, thumbnail(Image.new("RGB", (60, 40), "teal")), Path(name))


def write(path: Path, **changes: Any) -> Path:
    """A page of two models on two data sets, of which the second is one for retrieval."""
    examples = {name: example(name) for name in ("a.png", "b.png", "c.png")}
    one = classified({"cat": 0.9, "dog": 0.2, "cow": 0.5}, [("dog", "cat", 7, ["a.png", "b.png"])])
    other = classified(
        {"cat": 0.4, "dog": 0.6, "cow": 0.5}, [("cat", "cow", 5, ["c.png"]), ("dog", "cow", 3, ["a.png"])]
    )
    found = {"task": "zeroshot_retrieval", "metrics": {"text_retrieval_recall@1": 0.25}, "images": 8}
    settings = {
        "models": ["first", "second"],
        "datasets": ["animals", "pairs"],
        "scores": [
            Scores(0, 0, one, examples), Scores(0, 1, found), Scores(1, 0, other, examples), Scores(1, 1, found),
        ],
        "titles": TITLES,
        "facts": [("cloob", "1")],
    }  # fmt: skip
    write_evaluation(path, Evaluation(**(settings | changes)))  # type: ignore[arg-type]
    return path


def cells(page: Browser, view: str) -> list[list[str]]:
    """The texts of a view's rows, bars and examples without theirs."""
    found = page.run(
        f"[...document.querySelectorAll('#{view} tbody tr')].map(row => [...row.cells].map(cell => "
        "(cell.querySelector('.value') ?? cell).textContent))"
    )
    return [list(row) for row in found]


def shown_views(page: Browser) -> list[str]:
    return list(page.run("[...document.querySelectorAll('main > div')].filter(e => !e.hidden).map(e => e.id)"))


def test_models_stand_side_by_side_with_their_intervals(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write(tmp_path / "report.html"))
    assert chromium.run("document.title") == "eval first, second"
    assert shown_views(chromium) == ["scores"]
    captions = chromium.run("[...document.querySelectorAll('#scores caption')].map(e => e.textContent)")
    assert captions == ["zeroshot classification", "zeroshot retrieval"]
    assert cells(chromium, "scores") == [
        ["animals", "first", "30", "53.3", "–"],
        ["animals", "second", "30", "50.0", "–"],
        ["pairs", "first", "8", "25.0"],
        ["pairs", "second", "8", "25.0"],
    ]
    assert chromium.run("document.querySelector('#scores .ends').textContent") == "43.3 to 58.3"
    # The interval's line lies where its numbers are on the bar, and the fill ends between them.
    places = chromium.run(
        "(track => ['.interval', '.fill'].map(name => { const b = track.querySelector(name).getBoundingClientRect(),"
        " t = track.getBoundingClientRect(); return [b.left - t.left, b.right - t.left].map(x => x / t.width); }))"
        "(document.querySelector('#scores .track'))"
    )
    assert [[round(x, 2) for x in part] for part in places] == [[0.43, 0.58], [0.0, 0.53]]
    fills = "[...document.querySelectorAll('#scores .fill')].slice(0, 2)"
    assert len(set(chromium.run(f"{fills}.map(fill => getComputedStyle(fill).backgroundColor)"))) == 2


def test_classes_and_scores_sort_and_filter(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write(tmp_path / "report.html"))
    chromium.click("#tab-classes")
    assert cells(chromium, "classes") == [
        ["cat", "10", "90.0", "40.0", "50"], ["dog", "10", "20.0", "60.0", "40"], ["cow", "10", "50.0", "50.0", "0"],
    ]  # fmt: skip
    head = "#classes th:nth-child({}) button"
    chromium.click(head.format(3))
    assert [row[0] for row in cells(chromium, "classes")] == ["cat", "cow", "dog"]
    assert chromium.run("document.querySelector('#classes th:nth-child(3)').ariaSort") == "descending"
    chromium.fill("#low", "30")
    assert [row[0] for row in cells(chromium, "classes")] == ["cat", "cow"]
    chromium.fill("#high", "60")
    assert [row[0] for row in cells(chromium, "classes")] == ["cow"]
    chromium.click("#show-all")
    chromium.press("s")
    assert [row[0] for row in cells(chromium, "classes")] == ["dog", "cow", "cat"]
    chromium.click(head.format(1))
    assert [row[0] for row in cells(chromium, "classes")] == ["cat", "cow", "dog"]
    chromium.fill("#find", "C")
    assert [row[0] for row in cells(chromium, "classes")] == ["cat", "cow"]
    assert chromium.run("document.getElementById('count').textContent") == "2 of 3"
    chromium.click("#show-all")
    chromium.click("#tab-scores")
    chromium.fill("#model", "1")
    assert [row[:2] for row in cells(chromium, "scores")] == [["animals", "second"], ["pairs", "second"]]
    chromium.fill("#set", "1")
    assert [row[:2] for row in cells(chromium, "scores")] == [["pairs", "second"]]
    assert chromium.run("[...document.querySelectorAll('.empty')].filter(e => e.offsetParent).length") == 1


def test_keys_lead_from_a_score_to_an_example(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write(tmp_path / "report.html"))
    chromium.press("ArrowDown", "Enter")  # the first model's score
    assert shown_views(chromium) == ["classes"]
    assert chromium.run("document.getElementById('model').value") == "0"
    chromium.press("ArrowDown", "ArrowDown", "Enter")  # of the dogs
    assert shown_views(chromium) == ["confusions"]
    assert [row[:4] for row in cells(chromium, "confusions")] == [["first", "dog", "cat", "7"]]
    chromium.press("x")
    assert [row[:4] for row in cells(chromium, "confusions")] == [
        ["first", "dog", "cat", "7"], ["second", "cat", "cow", "5"], ["second", "dog", "cow", "3"],
    ]  # fmt: skip
    chromium.press("ArrowDown", "Enter")
    name = "document.getElementById('one-name').textContent"
    assert chromium.run("document.getElementById('one').open")
    assert chromium.run(name) == "a.png"
    assert chromium.wait("document.getElementById('one-image').naturalWidth") == 60
    chromium.press("ArrowRight")
    assert chromium.run(name) == "b.png"
    chromium.press("ArrowRight")
    assert chromium.run(name) == "c.png"
    assert chromium.run("document.getElementById('one-link').href") == (tmp_path / "c.png").as_uri().replace(
        str(tmp_path), str(Path.cwd())
    )
    facts = chromium.run("[...document.querySelectorAll('#one-facts td:last-child')].map(e => e.textContent)")
    assert facts == ["cat", "cow", "second", "animals", "5"]
    chromium.press("Enter", "1")
    assert not chromium.run("document.getElementById('one').open")
    assert shown_views(chromium) == ["scores"]
    chromium.press("3")
    chromium.click("#confusions tbody tr:nth-child(1) img:nth-child(2)")
    assert chromium.run(name) == "b.png"
    chromium.press("Escape", "?")
    assert chromium.run("document.getElementById('help').open")
    chromium.press("Escape", "/")
    assert chromium.run("document.activeElement.id") == "find"


def test_hostile_names_do_nothing(chromium: Browser, tmp_path: Path) -> None:
    record = classified(dict.fromkeys(HOSTILE, 0.5), [(text, text, 1, [text]) for text in HOSTILE])
    examples = {text: example(text) for text in HOSTILE}
    page = write(
        tmp_path / "report.html", models=HOSTILE, datasets=HOSTILE, facts=[(text, text) for text in HOSTILE],
        scores=[Scores(number, number, record, examples) for number in range(len(HOSTILE))],
        titles={"acc1": HOSTILE[0], "acc5": HOSTILE[1]},
    )  # fmt: skip
    chromium.open(page)
    assert [row[:2] for row in cells(chromium, "scores")] == [[text, text] for text in HOSTILE]
    heads = chromium.run("[...document.querySelectorAll('#scores th')].map(e => e.textContent)")
    assert heads == ["data set", "model", "images", *HOSTILE[:2]]
    chromium.press("2")
    assert [row[:2] for row in cells(chromium, "classes")] == [[s, text] for s in HOSTILE for text in HOSTILE]
    chromium.press("3")
    confused = cells(chromium, "confusions")
    assert [row[2:4] for row in confused] == [[text, text] for _ in HOSTILE for text in HOSTILE]
    for place, text in enumerate(HOSTILE):
        chromium.run(f"document.querySelector('#confusions tbody tr:nth-child({place + 1})').click()")
        assert chromium.run("document.getElementById('one-name').textContent") == str(Path(text))
        assert chromium.run("new URL(document.getElementById('one-link').href).protocol") == "file:"
        chromium.run("document.getElementById('one-close').click()")
    assert chromium.run("[...document.querySelectorAll('dd')].map(e => e.textContent)") == HOSTILE
    assert chromium.run("[...document.querySelectorAll('#set option')].slice(1).map(e => e.text.trim())") == [
        " ".join(text.split()) for text in HOSTILE
    ]
    assert chromium.run("document.querySelectorAll('svg, iframe, [onerror], [onload]').length") == 0
    assert chromium.run("document.scripts.length") == 1  # the page's own; the results are taken out
    assert not chromium.happened("Page.javascriptDialogOpening")
    assert not chromium.happened("Runtime.exceptionThrown")
    assert not chromium.happened("Log.entryAdded")
    loaded = {event["request"]["url"].split(":")[0] for event in chromium.happened("Network.requestWillBeSent")}
    assert loaded == {"file", "data"}


def test_dark_and_light_follow_the_system_and_the_button(chromium: Browser, tmp_path: Path) -> None:
    colors = "['body', '#scores .fill'].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)"
    chromium.emulate("dark")
    try:
        chromium.open(write(tmp_path / "report.html"))
        dark = chromium.run(colors)
        chromium.click("#theme")
        light = chromium.run(colors)
        chromium.emulate("light")
        chromium.click("#theme")
        assert chromium.run(colors) == dark
        assert all(one != other for one, other in zip(dark, light, strict=True))
    finally:
        chromium.emulate("")


def test_a_narrow_window_breaks_no_word_letter_by_letter(chromium: Browser, tmp_path: Path) -> None:
    chromium.resize(400, 800)
    try:
        chromium.open(
            write(tmp_path / "report.html", models=["cloob-xs-pictograms", "x" * 200], datasets=["animals", "b"])
        )
        # The heads of the columns are one or two lines of 14 pixels, and it is the table that scrolls, not the page.
        heights = chromium.run(
            "[...document.querySelectorAll('#scores th button')].map(e => e.getBoundingClientRect().height)"
        )
        assert max(heights) < 60, heights
        assert chromium.run("document.documentElement.scrollWidth") <= 400
        names = "[...document.querySelectorAll('#scores tbody td:nth-child(2)')].map(e => e.offsetWidth)"
        assert all(60 <= width <= 400 for width in chromium.run(names))  # a name without a space breaks
    finally:
        chromium.resize(0, 0)


def test_a_thousand_classes_are_drawn_a_part_at_a_time(chromium: Browser, tmp_path: Path) -> None:
    record = classified({f"class {number}": number / 1000 for number in range(1000)}, [])
    chromium.open(write(tmp_path / "report.html", models=["m"], datasets=["d"], scores=[Scores(0, 0, record)]))
    assert chromium.run("document.getElementById('tab-confusions').hidden")
    chromium.press("2")
    lines = "document.querySelectorAll('#classes tbody tr').length"
    assert chromium.run(lines) == 200
    assert chromium.run("document.querySelector('.more:not([hidden])').textContent") == "Show 200 more of 800"
    chromium.press("End", "Enter")
    assert chromium.run(lines) == 400
    assert chromium.run("document.activeElement.cells[0].textContent") == "class 200"
    chromium.click("#classes th:nth-child(1) button")
    assert cells(chromium, "classes")[10][0] == "class 10"  # numbers in names count as numbers
    chromium.fill("#find", "class 99")
    assert chromium.run(lines) == 11
