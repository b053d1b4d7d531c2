"""Label texts' embeddings are computed once, and never taken for those of anything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import cloob_here
from tiny_model import save_images, save_tiny_model

from cloob_cli import load
from cloob_cli.core.model import CloobModel
from cloob_cli.data.tokenizer import train_bpe
from cloob_cli.inference import label_cache
from cloob_cli.inference.classify import encode_labels
from cloob_cli.inference.label_cache import recall_labels
from cloob_cli.inference.labels import Label

LABELS = [Label(f"a bicycle {number}", (f"a bicycle {number}", f"cat {number}")) for number in range(16)]
TEMPLATES = ["{c}", "the {c}"]


@pytest.fixture
def model(tmp_path: Path) -> CloobModel:
    return load(str(save_tiny_model(tmp_path / "model")), "cpu")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of labels that were really encoded, a number a time."""
    counts: list[int] = []

    def counted(model: CloobModel, labels: list[Label], *further: object) -> torch.Tensor:
        counts.append(len(labels))
        return encode_labels(model, labels, *further)  # type: ignore[arg-type]

    monkeypatch.setattr(label_cache, "encode_labels", counted)
    return counts


def kept_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_the_second_time_nothing_is_encoded_and_every_bit_is_the_same(
    tmp_path: Path, model: CloobModel, encoded: list[int]
) -> None:
    first, second = (recall_labels(tmp_path / "kept", model, "w", LABELS, TEMPLATES) for _ in range(2))
    assert encoded == [16]
    assert torch.equal(first, encode_labels(model, LABELS, TEMPLATES))
    assert torch.equal(first, second)


def test_few_texts_are_not_kept(tmp_path: Path, model: CloobModel, encoded: list[int]) -> None:
    for _ in range(2):
        recall_labels(tmp_path / "kept", model, "w", LABELS[:15], TEMPLATES)
    assert encoded == [15, 15]
    assert not (tmp_path / "kept").exists()


def test_what_changes_the_numbers_is_another_key(
    tmp_path: Path, model: CloobModel, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"

    def recall(
        weights: str = "w", labels: list[Label] = LABELS, templates: list[str] = TEMPLATES, batch_size: int = 64
    ) -> None:
        recall_labels(folder, model, weights, labels, templates, batch_size)

    def another_tokenizer() -> None:
        assert model.tokenize is not None
        model.tokenize = train_bpe(["the cats are on the bicycles", "the cats"], 540, model.tokenize.context_length)
        recall()

    def another_version() -> None:
        monkeypatch.setattr(label_cache, "__version__", "0")
        recall()

    recall()
    changes: list[Callable[[], None]] = [
        lambda: recall(weights="other"),
        lambda: recall(labels=LABELS[::-1]),
        lambda: recall(labels=[*LABELS[:-1], Label("other", ("a bicycle 15", "cat 16"))]),
        lambda: recall(templates=["{c}", "a {c}"]),
        lambda: recall(batch_size=7),
        lambda: recall(labels=[Label("odd", ("caf\udce9",)), *LABELS]),  # as in a path that is not UTF-8
        another_tokenizer,
        another_version,
    ]
    for number, change in enumerate(changes, start=2):
        change()
        assert len(encoded) == number, number
        assert len(kept_files(folder)) == number
    model.to(torch.bfloat16)
    recall()
    assert len(kept_files(folder)) == len(changes) + 2


def damage(kind: str, path: Path) -> None:
    content = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[:-8])
    elif kind == "a bit":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("kind", ["empty", "cut", "a bit", "a folder"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, model: CloobModel, encoded: list[int], kind: str) -> None:
    folder = tmp_path / "kept"
    first = recall_labels(folder, model, "w", LABELS, TEMPLATES)
    [path] = kept_files(folder)
    damage(kind, path)
    for _ in range(2):
        assert torch.equal(recall_labels(folder, model, "w", LABELS, TEMPLATES), first)
    assert len(encoded) == (3 if kind == "a folder" else 2)


def test_a_folder_that_cannot_be_written(tmp_path: Path, model: CloobModel, encoded: list[int]) -> None:
    (tmp_path / "occupied").write_text("no folder")
    for _ in range(2):
        recall_labels(tmp_path / "occupied" / "kept", model, "w", LABELS, TEMPLATES)
    assert encoded == [16, 16]


def test_files_that_were_used_longest_ago_make_room(
    tmp_path: Path, model: CloobModel, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    for number in range(3):
        recall_labels(folder, model, f"{number}", LABELS, TEMPLATES)
        for path in kept_files(folder):
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**12))  # older by a quarter of an hour
    recall_labels(folder, model, "0", LABELS, TEMPLATES)  # the oldest, but used now
    size = kept_files(folder)[0].stat().st_size
    monkeypatch.setattr(label_cache, "MOST_BYTES", 3 * size)
    recall_labels(folder, model, "3", LABELS, TEMPLATES)
    assert len(encoded) == 4
    for weights in ("0", "2", "3"):
        recall_labels(folder, model, weights, LABELS, TEMPLATES)
    assert len(encoded) == 4
    recall_labels(folder, model, "1", LABELS, TEMPLATES)
    assert len(encoded) == 5


def test_classify_encodes_the_same_labels_once(tmp_path: Path, encoded: list[int]) -> None:
    save_tiny_model(tmp_path / "model")
    save_images(tmp_path / "images", 2)
    (tmp_path / "labels.txt").write_text("\n".join(f"bicycle {number}" for number in range(20)))
    command = ["classify", "images", "-l", "labels.txt", "-m", "model", "--json", "--quiet"]
    results = [cloob_here(*command, cwd=tmp_path, CLOOB_HOME=str(tmp_path / "home")) for _ in range(2)]
    assert [result.returncode for result in results] == [0, 0]
    assert results[0].stdout == results[1].stdout
    assert encoded == [20]
    assert len(kept_files(tmp_path / "home" / "label-embeddings")) == 1
