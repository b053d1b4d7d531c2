"""The metrics of CLIP_benchmark itself on the same model and images, where that program is installed.

For its metrics `pip install --no-deps clip-benchmark` is enough: the modules need torch, tqdm and scikit-learn only.
The whole program needs an environment of its own (scripts/compare_clip_benchmark.py), whose folder must be in PATH.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import environment
from margins import close
from pair_files import image
from PIL import Image, ImageDraw
from tiny_model import save_tiny_model
from tiny_run import COLORS, PLACES, write_class_folders

from cloob_cli import load
from cloob_cli.core.model import CloobModel
from cloob_cli.data.captioned_images import CaptionedSet, open_captioned_set
from cloob_cli.data.classification import open_classification_set
from cloob_cli.evaluation.embeddings import Embedder
from cloob_cli.evaluation.retrieval import retrieval
from cloob_cli.evaluation.zero_shot import zero_shot

POINT = "a tenth of a point, which the same program on the same embeddings never needs"


def judge(name: str) -> ModuleType:
    """One of its modules, without its package, whose entry imports more."""
    if importlib.util.find_spec("clip_benchmark") is None:
        pytest.skip("clip_benchmark is not installed")
    pytest.importorskip("sklearn")
    found = importlib.util.find_spec(f"clip_benchmark.metrics.{name}")
    assert found
    assert found.origin
    # Version 1.6.2 makes a float of an array of one number, which NumPy 2.4 refuses.
    text = Path(found.origin).read_text(encoding="utf-8").replace(".cpu().numpy())", ".item())")
    module = ModuleType(name)
    exec(compile(text, found.origin, "exec"), module.__dict__)
    module.tqdm = lambda batches: batches  # type: ignore[attr-defined]
    return module


class Batches:
    """A stand-in for its DataLoader: pairs of pixels and targets, and the data set's classes."""

    def __init__(self, batches: list[Any], classes: list[str]) -> None:
        self.batches, self.dataset = batches, SimpleNamespace(classes=classes)

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.fixture
def model(tmp_path: Path) -> CloobModel:
    return load(str(save_tiny_model(tmp_path / "model")), device="cpu")


@pytest.mark.numeric
def test_zero_shot(model: CloobModel, tmp_path: Path) -> None:
    theirs = judge("zeroshot_classification")
    data = open_classification_set(write_class_folders(tmp_path / "colors"))
    pixels = torch.stack([model.preprocess(data.image(index)) for index in range(len(data))])
    batches = Batches([(pixels, torch.tensor(data.labels))], data.classes)
    with torch.no_grad():
        expected = theirs.evaluate(model, batches, model.tokenize, data.classes, data.templates, "cpu", amp=False)
    found = zero_shot(Embedder(model, "tiny"), data, range(len(data)), "tiny", 0).metrics
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, POINT, atol=1e-3)


@pytest.mark.numeric
def test_retrieval_with_several_captions(model: CloobModel, tmp_path: Path) -> None:
    theirs = judge("zeroshot_retrieval")
    folder = tmp_path / "pairs"
    folder.mkdir()
    words = ["red", "roof", "sea", "night", "cat", "bicycle"]
    for number in range(30):
        image(number).save(folder / f"{number:02}.png")
        texts = [f"{words[number % 6]} {words[number // 6]} {n}" for n in range(1 + number % 3)]
        (folder / f"{number:02}.txt").write_text("\n".join(texts))
    data = open_captioned_set(folder)
    expected = theirs.evaluate(model, Batches(_batches(model, data), []), model.tokenize, "cpu", False, [1, 5, 10])
    found = retrieval(Embedder(model, "tiny"), data, range(len(data)), "tiny", 0)
    assert found.ties == 0  # it breaks ties by chance, we count them against the model
    assert found.metrics.keys() == expected.keys()
    for name, value in expected.items():
        close(found.metrics[name], value, POINT, atol=1e-3)


def drawn(color: str, place: str) -> bytes:
    image = Image.new("RGB", (16, 16), "gray")
    ImageDraw.Draw(image).rectangle(PLACES[place], fill=color)
    stream = io.BytesIO()
    image.resize((64, 64), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def write_webdataset(folder: Path, suffix: str, examples: list[tuple[bytes, str]], **files: str) -> Path:
    """A data set in CLIP_benchmark's layout, in one archive."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for number, (pixels, text) in enumerate(examples):
            for ending, content in (("png", pixels), (suffix, text.encode())):
                member = tarfile.TarInfo(f"s{number:05}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.mark.slow
def test_the_whole_program_on_an_exported_model(tmp_path: Path) -> None:
    """Retrieval with one to three captions an image, and classes of different sizes."""
    program = shutil.which("clip_benchmark")
    if program is None:
        pytest.skip("the program clip_benchmark is not in PATH")
    every = [(color, place) for color in COLORS for place in PLACES]
    # All different: ties count against the model here, there chance decides them.
    captions = [[f"{color} {place}", f"a {color} icon, {place}", f"{place} in {color}"] for color, place in every]
    pairs = [
        (drawn(*one), "\n".join(texts[: 1 + n % 3])) for n, (one, texts) in enumerate(zip(every, captions, strict=True))
    ]
    sizes = [(color, place) for number, color in enumerate(COLORS) for place in list(PLACES)[: 1 + number]]
    classes = [(drawn(*one), str(COLORS.index(one[0]))) for one in sizes]
    data = [
        write_webdataset(tmp_path / "pairs", "txt", pairs, dataset_type="retrieval"),
        write_webdataset(
            tmp_path / "colors", "cls", classes, classnames="\n".join(COLORS),
            zeroshot_classification_templates="{c}\nan icon in {c}", dataset_type="classification",
        ),
    ]  # fmt: skip
    script = Path(__file__).resolve().parents[2] / "scripts" / "compare_clip_benchmark.py"
    command = [sys.executable, script, "cloob-xs-pictograms", *data, "--program", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + 6 + 3  # the heading, recalls both ways, and three accuracies


def _batches(model: CloobModel, data: CaptionedSet) -> list[Any]:
    def pixels(rows: range) -> torch.Tensor:
        return torch.stack([model.preprocess(data.image(row)) for row in rows])

    return [(pixels(rows), [data.captions[row] for row in rows]) for rows in (range(16), range(16, 30))]
