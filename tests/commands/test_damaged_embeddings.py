"""Embeddings that are cut short, damaged, or something else: one line and a hint, wherever they are read."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import cloob_here
from tiny_model import save_images, save_tiny_model


class Trap:
    """An object whose unpickling fails the test."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("unpickled",)


def npy(array: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), **options)  # type: ignore[arg-type]
    return stream.getvalue()


def objects(count: int) -> bytes:
    array = np.empty(count, object)
    array[:] = [Trap() for _ in range(count)]
    return npy(array, allow_pickle=True)


FOREIGN = {"another length", "objects", "a pickle", "text"}  # which somebody else may have put there
DAMAGED = {
    "cut within its rows": (lambda good: good[:-10], "is cut short: it has 3 of 4 rows"),
    "cut within its header": (lambda good: good[:50], "is damaged: its header cannot be read"),
    "cut within its first bytes": (lambda good: good[:3], "is cut short"),
    "another header": (lambda good: good[:10] + b"(" * 118 + good[128:], "is damaged: its header cannot be read"),
    "zeros": (lambda good: bytes(len(good)), "is not a .npy file"),
    "whole numbers": (lambda good: npy(np.zeros((4, 16), np.int64)), "holds int64 [4, 16], no embeddings"),
    "one dimension": (lambda good: npy(np.zeros(4, np.float32)), "holds float32 [4], no embeddings"),
    "another dtype": (lambda good: npy(np.zeros((4, 16))), "do not belong together: float64 and float32"),
    "another length": (lambda good: npy(np.zeros((5, 16), np.float32)), "do not belong together: (5, 16) and 4 rows"),
    "objects": (lambda good: objects(4), "holds Python objects, no embeddings"),
    "a pickle": (lambda good: pickle.dumps([Trap()]), "is not a .npy file"),
    "text": (lambda good: b"path,label\n", "is not a .npy file"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("damaged")
    save_tiny_model(place / "model")
    save_images(place / "images", 4)
    assert cloob_here("embed", "images", "-o", "emb.npy", "-m", "model", cwd=place).returncode == 0
    return place


def test_embeddings_of_texts_are_not_searched_for_images(made: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("a cat\na dog\n", encoding="utf-8")
    model = str(made / "model")
    assert cloob_here("embed", "--text", "queries.txt", "-o", "q.npy", "-m", model, cwd=tmp_path).returncode == 0
    classify = ["classify", str(made / "images"), "--label", "cat", "--unknown", "x", "--reference", "q.npy"]
    for command in (["search", "q.npy", "a cat"], classify):
        result = cloob_here(*command, "-m", model, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        error, hint = result.stderr.splitlines()[-2:]
        assert "q.npy holds embeddings of texts, not of images" in error
        assert hint == "hint: `cloob embed DIR -o FILE` makes those of images"


@pytest.mark.parametrize("case", DAMAGED)
def test_search_reference_and_embed_say_what_is_wrong(made: Path, tmp_path: Path, case: str) -> None:
    place = Path(shutil.copytree(made, tmp_path / "place"))
    damage, message = DAMAGED[case]
    content = damage((made / "emb.npy").read_bytes())
    (place / "emb.npy").write_bytes(content)
    classify = ["classify", "images", "--label", "cat", "-m", "model", "--unknown", "x"]
    embed = ["embed", "images", "-o", "emb.npy", "-m", "model"]
    for command in (["search", "emb.npy", "a cat", "-m", "model"], [*classify, "--reference", "emb.npy"], embed):
        result = cloob_here(*command, cwd=place)
        assert (result.returncode, result.stdout) == (2, ""), (command, result.stderr)
        error, hint = result.stderr.splitlines()[-2:]
        assert error.startswith("error: emb.npy"), error
        # `embed` replaces its own damaged file when asked to start anew, and somebody else's by force only.
        by_force = command == embed and case in FOREIGN
        assert ("exists, and `cloob embed` did not write it" if by_force else message) in error, error
        anew = "start anew with --rebuild" if command == embed else "`cloob embed DIR -o FILE --rebuild`"
        assert ("overwrite it with --force" if by_force else anew) in hint
        assert "pickle" not in result.stderr
        assert (place / "emb.npy").read_bytes() == content
    if case in ("cut within its rows", "cut within its header", "objects"):  # which stand for the others
        force = ["--force"] if case in FOREIGN else []
        assert cloob_here(*embed, *force, "--rebuild", cwd=place).returncode == 0
        np.testing.assert_array_equal(np.load(place / "emb.npy"), np.load(made / "emb.npy"))


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ([1, 2, 3, 4], "emb.parquet has int64 in its column path, no paths"),
        ([b"a", b"b", b"c", b"d"], "emb.parquet has binary in its column path, no paths"),
        (["a", None, "c", "d"], "emb.parquet lacks 1 of its paths"),
    ],
)
def test_an_index_that_names_no_files(made: Path, tmp_path: Path, paths: list[object], says: str) -> None:
    place = shutil.copytree(made, tmp_path / "place")
    pq.write_table(pa.table({"path": paths}), place / "emb.parquet")
    for command in (
        ["search", "emb.npy", "a cat", "-m", "model"],
        ["classify", "images", "--label", "a", "--unknown", "x", "--reference", "emb.npy", "-m", "model"],
    ):
        done = cloob_here(*command, cwd=place)
        assert (done.returncode, done.stdout) == (2, "")
        error, hint = done.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert error.endswith(says)
        assert hint == "hint: `cloob embed DIR -o FILE --rebuild` makes them anew"
