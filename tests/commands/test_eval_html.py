"""`cloob eval --html`: the page has the results and the confused images, whatever the data set is stored in."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from browser import browser, needs_browser
from command_line import cloob_here
from pair_files import write_folder
from PIL import Image
from tiny_model import VIT, save_tiny_model
from tiny_run import COLORS, write_class_folders

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, images of eight colors in class folders, and ten images with captions."""
    folder = tmp_path_factory.mktemp("eval-html")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "other", VIT | {"patch_size": 8})
    write_class_folders(folder / "colors")
    write_folder(folder / "pairs", range(10))
    return folder


def run(place: Path, *arguments: object, code: int = 0) -> str:
    done = cloob_here("eval", *arguments, "--device", "cpu", cwd=place, CLOOB_HOME=str(place / "home"))
    assert done.returncode == code, done.stderr
    return done.stdout


def results_of(page: Path) -> dict[str, Any]:
    pattern = r'<script type="application/json" id="results">(.*?)</script>'
    [text] = re.findall(pattern, page.read_text("utf-8"), re.DOTALL)
    return dict(json.loads(text))


def png(path: Path) -> bytes:
    stream = io.BytesIO()
    with Image.open(path) as image:
        image.save(stream, "PNG")
    return stream.getvalue()


def as_folder(colors: Path, out: Path) -> Path:
    return colors


def as_webdataset(colors: Path, out: Path) -> Path:
    (out / "test").mkdir(parents=True)
    (out / "classnames.txt").write_text("\n".join(sorted(COLORS)))
    (out / "test" / "nshards.txt").write_text("1")
    with tarfile.open(out / "test" / "0.tar", "w") as tar:
        for number, path in enumerate(sorted(colors.glob("*/*.png"))):
            label = str(sorted(COLORS).index(path.parent.name)).encode()
            for suffix, content in (("png", path.read_bytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out


def as_parquet(colors: Path, out: Path) -> Path:
    paths = sorted(colors.glob("*/*.png"))
    table = pa.table({"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]})
    pyarrow.parquet.write_table(table, out.with_suffix(".parquet"), row_group_size=7)
    return out.with_suffix(".parquet")


def as_csv(colors: Path, out: Path) -> Path:
    lines = [f"{path},{path.parent.name}" for path in sorted(colors.glob("*/*.png"))]
    out.with_suffix(".csv").write_text("\n".join(["path,label", *lines]))
    return out.with_suffix(".csv")


@pytest.mark.parametrize("form", [as_folder, as_webdataset, as_parquet, as_csv])
def test_confusions_have_their_images(place: Path, tmp_path: Path, form: Callable[[Path, Path], Path]) -> None:
    """The color of a thumbnail shows that it is an image of the class that the confusion names."""
    data = form(place / "colors", tmp_path / "set")
    page = tmp_path / "report.html"
    table = run(place, "model", data, "--html", page)
    assert "class of" not in table  # --per-class alone shows that
    [record] = results_of(page)["records"]
    expected = json.loads(run(place, "model", data, "--per-class", "--json"))[0]
    assert record["metrics"] == expected["metrics"]
    assert record["intervals"] == expected["intervals"]
    assert [(name, images) for name, images, _ in record["classes"]] == [(name, 4) for name in sorted(COLORS)]
    assert [one[:3] for one in record["confusions"]] == [
        [one["class"], one["predicted"], one["count"]] for one in expected["confusions"]
    ]
    examples = results_of(page)["examples"]
    for name, _, count, shown in record["confusions"]:
        assert len(shown) == min(count, 4)
        for number in shown:
            assert ("link" in examples[number]) == (form in (as_folder, as_csv))
            with Image.open(io.BytesIO(base64.b64decode(examples[number]["image"].partition(",")[2]))) as thumbnail:
                colors = thumbnail.convert("RGB").getcolors(256)
            assert colors
            assert thumbnail.size == (16, 16)
            plain = Image.new("RGB", (1, 1), name).getpixel((0, 0))
            nearest = min(sum((a - b) ** 2 for a, b in zip(one, plain, strict=True)) for _, one in colors)
            assert nearest < 60**2, name  # gray, the rest of each image, is farther from all eight colors


def test_images_are_decoded_once_for_all_models(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloob_cli.data.labeled_set import ClassificationSet

    arguments = ["model", "colors", "--model", "other"]
    run(place, *arguments)  # the embeddings are kept
    decoded: list[int] = []
    original = ClassificationSet.image
    monkeypatch.setattr(ClassificationSet, "image", lambda self, index: decoded.append(index) or original(self, index))
    run(place, *arguments, "--html", tmp_path / "report.html")
    found = results_of(tmp_path / "report.html")
    assert len(found["models"]) == 2
    assert len(decoded) == len(set(decoded)) == len(found["examples"])


def test_several_models_data_sets_and_tasks(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    run(place, "model", "colors", "pairs", "--model", "other", "--html", page)
    found = results_of(page)
    assert found["models"] == ["tiny (model)", "tiny (other)"]
    assert found["sets"] == ["colors", "pairs"]
    assert [(one["model"], one["set"], one["task"]) for one in found["records"]] == [
        (0, 0, "zeroshot_classification"), (0, 1, "zeroshot_retrieval"),
        (1, 0, "zeroshot_classification"), (1, 1, "zeroshot_retrieval"),
    ]  # fmt: skip


@pytest.mark.slow
def test_classifiers_on_the_embeddings(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    page = tmp_path / "report.html"
    for split in ("train", "test"):
        write_class_folders(tmp_path / "split" / split)
    run(place, "model", tmp_path / "split", "--task", "few-shot", "--html", page)
    [record] = results_of(page)["records"]
    assert record["metrics"].keys() >= {"1_shot_acc1", "16_shot_acc1_std"}
    assert record["classes"] == record["confusions"] == []
    run(place, "model", tmp_path / "split", "--task", "linear-probe", "--html", page)
    [record] = results_of(page)["records"]
    assert len(record["classes"]) == len(COLORS)


def test_results_that_are_taken_over_have_their_classes(place: Path, tmp_path: Path) -> None:
    plain = run(place, "model", "colors", "pairs", "-o", tmp_path / "scores.json", "--json")
    arguments = ["model", "colors", "pairs", "-o", tmp_path / "scores.json", "--skip-existing", "--json"]
    assert run(place, *arguments, "--html", tmp_path / "report.html") == plain
    classified, retrieval = results_of(tmp_path / "report.html")["records"]
    assert len(classified["classes"]) == len(COLORS)
    assert retrieval["classes"] == []
    # An earlier run with --per-class has all that the page needs.
    detailed = run(place, *arguments, "--per-class")
    assert "per_class" in json.loads(detailed)[0]
    assert run(place, *arguments, "--html", tmp_path / "report.html") == detailed
    again = results_of(tmp_path / "report.html")["records"][0]
    assert again == classified


def test_pages_that_cannot_be_written_are_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.html").write_text("<p>hello")
    for page in (tmp_path / "theirs.html", tmp_path / "report.pdf", tmp_path, "colors/red/left.png/report.html"):
        done = cloob_here("eval", "model", "colors", "--html", page, cwd=place)
        assert (done.returncode, done.stdout) == (2, ""), page
        assert done.stderr.splitlines()[-2].startswith("error"), page


@needs_browser
def test_a_hostile_class_name_does_nothing(place: Path, tmp_path: Path) -> None:
    data = tmp_path / HOSTILE
    write_class_folders(data)
    (data / "red").rename(data / HOSTILE)
    page = tmp_path / "report.html"
    run(place, "model", data, "--html", page)
    names = "[...document.querySelectorAll('#{} tbody tr')].map(row => row.cells[{}].textContent)"
    with browser(tmp_path / "profile") as chromium:
        chromium.open(page)
        assert chromium.run(names.format("scores", 0)) == [HOSTILE]
        chromium.press("2")
        assert HOSTILE in chromium.run(names.format("classes", 0))
        chromium.fill("#find", HOSTILE)
        assert chromium.run(names.format("classes", 0)) == [HOSTILE]
        chromium.press("Escape", "3")
        confused = chromium.run("document.querySelector('#confusions').textContent")
        assert HOSTILE in confused
        assert not chromium.happened("Page.javascriptDialogOpening")
        assert not chromium.happened("Runtime.exceptionThrown")
        assert not chromium.happened("Log.entryAdded")
