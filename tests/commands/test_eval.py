"""`cloob eval`: its numbers beside plain ones, its forms of output, kept embeddings, and bad input."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from command_line import cloob, cloob_here
from margins import close, within
from pair_files import write_folder
from PIL import Image, ImageColor
from tiny_model import save_hostile_images, save_tiny_model
from tiny_run import COLORS, write_class_folders

import cloob_cli
from cloob_cli.core.zero_shot import DEFAULT_TEMPLATES

HITS = "counts of images, divided in float64"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, images of eight colors in class folders, and ten images with captions."""
    folder = tmp_path_factory.mktemp("eval")
    save_tiny_model(folder / "model")
    write_class_folders(folder / "colors")
    write_folder(folder / "pairs", range(10))
    return folder


def run(place: Path, *arguments: object) -> list[dict[str, object]]:
    done = cloob_here(
        "eval", *arguments, "--json", "--quiet", "--device", "cpu", cwd=place, CLOOB_HOME=str(place / "home")
    )
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.numeric
def test_zero_shot_is_what_a_few_lines_compute(place: Path) -> None:
    [record] = run(place, "model", "colors")
    model = cloob_cli.load(str(place / "model"), device="cpu")
    paths = sorted((place / "colors").glob("*/*.png"))
    images = model.encode_image(torch.stack([model.preprocess(Image.open(path)) for path in paths]))
    sums = [
        model.encode_text(model.tokenize([t.replace("{c}", c) for t in DEFAULT_TEMPLATES])).sum(0)
        for c in sorted(COLORS)
    ]
    scores = images @ torch.nn.functional.normalize(torch.stack(sums), dim=1).T
    labels = torch.tensor([sorted(COLORS).index(path.parent.name) for path in paths])
    right = scores.topk(5, dim=1).indices == labels[:, None]
    assert (record["dataset"], record["model"], record["task"]) == ("colors", "tiny", "zeroshot_classification")
    metrics = record["metrics"]
    close(metrics["acc1"], right[:, 0].double().mean(), HITS, atol=1e-9)
    close(metrics["acc5"], right.any(dim=1).double().mean(), HITS, atol=1e-9)
    close(metrics["mean_per_class_recall"], right[:, 0].double().mean(), HITS, atol=1e-9)  # classes are of one size
    assert (record["images"], record["classes"]) == (32, 8)
    assert all(low <= metrics[name] <= high for name, (low, high) in record["intervals"].items())


@pytest.mark.numeric
def test_of_equally_frequent_confusions_the_most_confident_come_first(place: Path) -> None:
    """With one image a class each confusion occurs once; the first 20 are not those of the first classes."""
    names = sorted(ImageColor.colormap)[:30]
    for name in names:
        (place / "single" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), name).save(place / "single" / name / "a.png")
    (place / "one.txt").write_text("{c}\n")
    [record] = run(place, "model", "single", "--templates", "one.txt", "--per-class")
    model = cloob_cli.load(str(place / "model"), device="cpu")
    images = model.encode_image(torch.stack([model.preprocess(Image.new("RGB", (16, 16), name)) for name in names]))
    scores = images @ model.encode_text(model.tokenize(names)).T
    ahead = {name: float(row.max() - row[number]) for number, (name, row) in enumerate(zip(names, scores, strict=True))}
    shown = [one["class"] for one in record["confusions"]]
    assert [one["count"] for one in record["confusions"]] == [1] * 20
    assert shown != sorted(shown)
    order = [ahead[name] for name in shown] + [max(ahead[name] for name in names if name not in shown)]
    for earlier, later in itertools.pairwise(order):
        within(later - earlier, 1e-5, "cosines through a dozen layers in float32: 40 EPS each")


def test_retrieval_of_captions(place: Path) -> None:
    [record] = run(place, "model", "pairs")
    assert record["task"] == "zeroshot_retrieval"
    assert set(record["metrics"]) == {f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in (1, 5, 10)}
    assert record["images"] == 10
    # Pairs 4 and 9 have the same caption, which is nearer to one of the two images: the other's is a wrong answer.
    assert record["metrics"]["image_retrieval_recall@10"] == 1.0


def test_kept_embeddings_give_the_same_numbers_and_follow_the_contents(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloob_cli.evaluation import embeddings

    first = run(place, "model", "colors", "pairs")
    computed: list[object] = []
    original = embeddings.Embedder._compute
    monkeypatch.setattr(embeddings.Embedder, "_compute", lambda *a: computed.append(a) or original(*a))
    assert run(place, "model", "colors", "pairs") == first
    assert not computed
    assert run(place, "model", "colors", "pairs", "--no-cache") == first
    assert len(computed) == 2
    run(place, "model", "colors", "--limit", 5)
    assert len(computed) == 3
    changed = place / "colors" / "red" / "left.png"
    before = changed.read_bytes()
    Image.new("RGB", (16, 16), "navy").save(changed)
    run(place, "model", "colors")
    assert len(computed) == 4
    changed.write_bytes(before)
    for file in (place / "home" / "evaluation").iterdir():  # damaged ones are computed anew
        file.write_bytes(file.read_bytes()[:50])
    assert run(place, "model", "colors", "pairs") == first
    assert len(computed) == 6


def test_a_file_of_scores_grows(place: Path) -> None:
    out = place / "scores.json"
    run(place, "model", "colors", "-o", out)
    records = run(place, "model", "colors", "pairs", "-o", out, "--skip-existing")
    assert [record["dataset"] for record in records] == ["colors", "pairs"]
    assert json.loads(out.read_text()) == records
    run(place, "model", "colors", "pairs", "-o", place / "scores.csv")
    rows = list(csv.DictReader(io.StringIO((place / "scores.csv").read_text())))
    assert float(rows[0]["acc1"]) == records[0]["metrics"]["acc1"]
    assert float(rows[0]["acc1_low"]) == records[0]["intervals"]["acc1"][0]
    assert rows[1]["acc1"] == ""
    assert [row["weights_sha256"] for row in rows] == [record["settings"]["weights_sha256"] for record in records]
    done = cloob_here("eval", "model", "colors", "--skip-existing", cwd=place)
    assert (done.returncode, done.stderr.splitlines()[-1][:4]) == (2, "hint")


def test_labels_and_templates_of_ones_own(place: Path) -> None:
    (place / "labels.txt").write_text("".join(f"{color}: {color} paint | {color}ish\n" for color in COLORS))
    (place / "templates.txt").write_text("{c}\n")
    [plain] = run(place, "model", "colors", "--templates", "templates.txt", "--per-class")
    [other] = run(place, "model", "colors", "--templates", "templates.txt", "--labels", "labels.txt", "--per-class")
    assert plain["settings"]["templates"] == other["settings"]["templates"] == ["{c}"]
    assert plain["confusions"] != other["confusions"]
    assert [one["class"] for one in other["per_class"]] == sorted(COLORS)
    assert sum(one["count"] for one in other["confusions"]) == 32 * (1 - other["metrics"]["acc1"])
    (place / "labels.txt").write_text("red\ngreen\n")
    done = cloob_here("eval", "model", "colors", "--labels", "labels.txt", cwd=place)
    assert done.returncode == 2
    assert "2 labels for 8 classes" in done.stderr


def test_as_a_process_with_a_second_model(place: Path) -> None:
    done = cloob("eval", "model", "colors", "--model", "model/../model", "--limit", 8, "--bootstrap", 0, cwd=place)
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["data set", "model", "task", "images", "top-1", "top-5", "mean per class"]
    assert [row[:4] for row in rows] == [["colors", "tiny", "zeroshot_classification", "8"]] * 2
    assert rows[0][4].endswith(" %")


def test_two_models_of_one_name_are_told_apart(place: Path, tmp_path: Path) -> None:
    """The weights before and after a run, for example."""
    save_tiny_model(tmp_path / "after", inv_tau=20.0)  # of the name that the other has
    before, after = str(place / "model"), str(tmp_path / "after")
    done = cloob_here("eval", before, place / "colors", "--model", after, "--bootstrap", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [line.split("\t")[1] for line in done.stdout.splitlines()]
    assert names == ["model", f"tiny ({before})", f"tiny ({after})"]


def test_images_beside_the_class_folders_are_told(place: Path, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "colors")
    (folder / "a.png").write_bytes((folder / "red" / "left.png").read_bytes())
    done = cloob_here("eval", place / "model", folder, "--device", "cpu", "--bootstrap", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"warning: {folder}: 1 image beside the folders of the classes left out" in done.stderr.splitlines()


def test_unreadable_images_are_skipped_and_counted(place: Path) -> None:
    write_class_folders(place / "broken")
    names = save_hostile_images(place / "broken" / "red")
    done = cloob_here("eval", "model", "broken", "--json", cwd=place)
    assert done.returncode == 3, done.stderr
    [record] = json.loads(done.stdout)
    assert (record["images"], record["skipped"]) == (33, len(names))
    assert f"broken: {len(names)} image(s) skipped" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model", "nowhere"), "no data set at nowhere"),
        (("nowhere", "colors"), "unknown model"),
        (("model", "colors", "--split", "train"), "no split 'train'"),
        (("model", "colors", "--task", "retrieval"), "none of the 32 images"),
        (("model", "pairs", "--task", "zero-shot"), "holds no labeled image"),
        (("model", "colors", "--labels", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("model", "colors", "-o", "scores.xlsx"), "unknown file type"),
        (("model", "colors", "-o", "colors/red/left.json", "--skip-existing", "--limit", 1), "limit"),
        (("model", "empty"), "empty"),
    ],
)
def test_bad_input_is_a_code_and_a_line(place: Path, arguments: tuple[object, ...], says: str) -> None:
    (place / "empty").mkdir(exist_ok=True)
    done = cloob_here("eval", *arguments, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1


def test_files_of_others_are_not_replaced(place: Path) -> None:
    for name, text in (("theirs.json", '{"a": 1}'), ("theirs.csv", "a,b\n1,2\n")):
        (place / name).write_text(text)
        done = cloob_here("eval", "model", "colors", "-o", name, cwd=place)
        assert done.returncode == 2
        assert "did not write it" in done.stderr
        assert (place / name).read_text() == text
