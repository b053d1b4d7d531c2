"""`cloob embed` into clip-retrieval's layout and into Lance tables: the rows are those of a .npy file."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from closed_folder import close_folder
from command_line import cloob_here
from interrupted import ctrl_c_after, kill_embed_after
from margins import close
from tiny_model import save_images, save_tiny_model

import cloob_cli

CAPTIONS = {"0000": "a red bicycle", "0003": "two cats on a roof", "0004": "a red bicycle", "0007": "the sea at night"}
FORMS = ["layout", "emb.lance"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, four of them with captions; their embeddings as .npy, in the layout, and as a Lance table."""
    place = tmp_path_factory.mktemp("forms")
    save_tiny_model(place / "model")
    for path in save_images(place / "images", 10, suffix=".ppm"):
        os.utime(path, (1e9, 1e9))
    for name, text in CAPTIONS.items():
        (place / "images" / f"{name}.txt").write_text(f"{text}\n")
    for output in ("emb.npy", *FORMS):
        if output != "emb.lance" or has_lancedb():
            embed(place, output)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


def has_lancedb() -> bool:
    from cloob_cli.inference.lance_tables import has_lancedb

    return has_lancedb()


def arguments(output: str, *options: object) -> list[object]:
    layout = ["--layout", "clip-retrieval", "--dtype", "float32"] if "layout" in output else []
    return ["embed", "images", "-o", output, "-m", "model", "--batch-size", 4, *layout, *options]


def embed(place: Path, output: str, *options: object) -> int:
    """Embed images/ and return the number of images that went through the model."""
    result = cloob_here(*arguments(output, *options), cwd=place)
    assert result.returncode == 0, result.stderr
    found = re.search(r"^embedded (\d+) images? ", result.stderr, re.MULTILINE)
    return int(found[1]) if found else 0


def rows(place: Path, output: str) -> tuple[list[str], np.ndarray, list[tuple[object, ...]]]:
    """Names, embeddings, and the stamps of the files."""
    if output.endswith(".lance"):
        lancedb = pytest.importorskip("lancedb")
        table = lancedb.connect(place).open_table(Path(output).stem).to_arrow()
        array = np.array(table.column("embedding").to_pylist(), np.float32)
    elif "layout" in output:
        table = pq.read_table(place / output / "metadata" / "metadata_0.parquet")
        array = np.load(place / output / "img_emb" / "img_emb_0.npy")
    else:
        table, array = pq.read_table((place / output).with_suffix(".parquet")), np.load(place / output)
    stamps = [table.column(name).to_pylist() for name in ("size", "mtime_ns", "sha256")]
    return (
        table.column("image_path" if "layout" in output else "path").to_pylist(),
        array,
        list(zip(*stamps, strict=True)),
    )


def check_like_new(place: Path, output: str) -> None:
    """Compare with what a run from nothing writes as .npy file, and with one in the same form; nothing hidden stays."""
    embed(place, "fresh.npy")
    (names, found, stamps), (expected_names, expected, expected_stamps) = rows(place, output), rows(place, "fresh.npy")
    assert (names, stamps) == (expected_names, expected_stamps)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if output == "layout":
        embed(place, "fresh layout")
        files = ["img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy"]
        assert [(place / output / name).read_bytes() for name in files] == [
            (place / "fresh layout" / name).read_bytes() for name in files
        ]
        ours, theirs = (
            pq.read_table(place / name / "metadata" / "metadata_0.parquet") for name in (output, "fresh layout")
        )
        assert ours.equals(theirs, check_metadata=True)
    assert [path for path in place.rglob(".*") if path.name != ".cloob"] == []


@pytest.mark.numeric
def test_the_layout_has_what_clip_retrieval_reads(made: Path) -> None:
    names, images, _ = rows(made, "layout")
    assert names == [f"images/{number:04}.ppm" for number in range(10)]
    np.testing.assert_array_equal(images, np.load(made / "emb.npy"))
    assert sorted(path.name for path in (made / "layout").rglob("*")) == [
        "img_emb", "img_emb_0.npy", "metadata", "metadata_0.parquet", "text_emb", "text_emb_0.npy",
    ]  # fmt: skip
    table = pq.read_table(made / "layout" / "metadata" / "metadata_0.parquet")
    captions = table.column("caption").to_pylist()
    assert captions == [CAPTIONS.get(f"{number:04}") for number in range(10)]
    texts = np.load(made / "layout" / "text_emb" / "text_emb_0.npy")
    m = cloob_cli.load(made / "model", device="cpu")
    for caption, row in zip(captions, texts, strict=True):
        if caption is None:
            assert not row.any()
        else:
            expected = m.encode_text(m.tokenize([caption]))[0]
            close(row, expected, "sums of some ten products in float32, of other shapes: 16 EPS", atol=2e-6)


def test_the_layout_is_float16_where_nobody_chose(place: Path) -> None:
    (place / "images" / "0000.txt").write_text("\n")
    for name in list(CAPTIONS)[1:]:
        (place / "images" / f"{name}.txt").unlink()
    result = cloob_here(
        "embed", "images", "-o", "new", "-m", "model", "--layout", "clip-retrieval", "--json", "-q", cwd=place
    )
    images = np.load(place / "new" / "img_emb" / "img_emb_0.npy")
    np.testing.assert_array_equal(images, np.load(place / "emb.npy").astype(np.float16))
    assert json.loads(result.stdout)["captions"] is None
    assert sorted(path.name for path in (place / "new").iterdir()) == ["img_emb", "metadata"]
    assert "caption" not in pq.read_schema(place / "new" / "metadata" / "metadata_0.parquet").names


@pytest.mark.parametrize("output", FORMS)
def test_only_what_changed_is_embedded(place: Path, output: str) -> None:
    if output == "emb.lance":
        pytest.importorskip("lancedb")
    before = {path: path.stat().st_mtime_ns for path in (place / output).rglob("*")}
    assert embed(place, output) == 0
    assert {path: path.stat().st_mtime_ns for path in (place / output).rglob("*")} == before
    images = place / "images"
    (images / "0001.ppm").rename(images / "z.ppm")
    (images / "0002.ppm").unlink()
    for path in save_images(images / "new", 13, suffix=".ppm")[:10]:
        path.unlink()
    (images / "new" / "0010.txt").write_text("a cat")
    (images / "0003.txt").write_text("the night")
    (images / "0007.txt").unlink()
    assert embed(place, output) == 3
    check_like_new(place, output)
    assert embed(place, output) == 0


def test_captions_alone_may_change(place: Path) -> None:
    (place / "images" / "0003.txt").write_text("the roof")
    assert embed(place, "layout") == 0
    check_like_new(place, "layout")
    for path in (place / "images").glob("*.txt"):
        path.unlink()
    assert embed(place, "layout") == 0
    assert not (place / "layout" / "text_emb").exists()


def test_captions_that_are_left_out_or_changed_are_told(place: Path) -> None:
    """A warning a kind of fault, also when quiet, and again as long as the file is there."""
    images = place / "images"
    for name in ("0001", "0003"):
        (images / f"{name}.txt").write_bytes(b"a" * ((1 << 20) + 1))
    (images / "0002.txt").write_bytes(b"caf\xe9")
    (images / "0005.txt").write_bytes("a cat".encode("utf-16"))
    (images / "0006.txt").mkdir()
    shutil.copy(images / "0002.ppm", images / "0002.pgm")  # another image with the same caption
    warnings = [
        "warning: captions of more than 1 MiB are left out: 2 files, the first images/0001.txt",
        "warning: captions are not UTF-8; the invalid bytes in them are replaced: 1 file, the first images/0002.txt",
        "warning: captions with null characters, which are not UTF-8 text, are left out: 1 file, "
        "the first images/0005.txt",
        "warning: captions that cannot be read are left out: 1 file, the first images/0006.txt",
    ]
    for options in ([], ["-q"]):
        result = cloob_here(*arguments("layout", *options), cwd=place)
        assert result.returncode == 0
        said = [line for line in result.stderr.splitlines() if line.startswith("warning: captions")]
        assert [line.replace("\\", "/") for line in said] == warnings
    captions = pq.read_table(place / "layout" / "metadata" / "metadata_0.parquet").column("caption").to_pylist()
    replaced = "caf\ufffd"
    expected = [
        "a red bicycle",
        None,
        replaced,
        replaced,
        None,
        "a red bicycle",
        None,
        None,
        "the sea at night",
        *[None] * 2,
    ]
    assert captions == expected


def test_captions_that_may_not_be_looked_at_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of such a folder are skipped, and those of others are embedded with their captions."""
    shutil.copytree(place / "images", place / "other")
    close_folder(place / "images", monkeypatch)
    result = cloob_here(*arguments("layout", "--rebuild"), "other", cwd=place)
    assert result.returncode == 3
    assert "captions that cannot be read are left out: 4 files, the first images/0000.txt" in result.stderr.replace(
        "\\", "/"
    )
    table = pq.read_table(place / "layout" / "metadata" / "metadata_0.parquet")
    names = [name.replace("\\", "/") for name in table.column("image_path").to_pylist()]
    assert names == [f"other/{number:04}.ppm" for number in range(10)]
    assert table.column("caption").null_count == 10 - len(CAPTIONS)


def test_one_caption_is_singular(place: Path) -> None:
    for name in list(CAPTIONS)[1:]:
        (place / "images" / f"{name}.txt").unlink()
    (place / "images" / "0000.txt").write_text("a cat")
    result = cloob_here(*arguments("layout"), cwd=place)
    assert "1 image has a caption beside it; 1 caption is new" in result.stderr.splitlines()
    (place / "images" / "0009.txt").write_text(
        "a cat on a roof with a red bicycle and another cat under the sea at night"
    )
    result = cloob_here(*arguments("layout"), cwd=place)
    assert "2 images have a caption beside them; 1 caption is new" in result.stderr.splitlines()
    assert "warning: 1 caption is longer than the model's 12 tokens and was cut" in result.stderr.splitlines()
    for path in sorted((place / "images").glob("*.ppm"))[1:]:
        path.unlink()
    result = cloob_here("embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", 4, cwd=place)
    assert "1 of 1 image is known, 9 are gone" in result.stderr.splitlines()
    result = cloob_here("embed", "images", "-o", "emb.npy", "-m", "model", "--batch-size", 4, cwd=place)
    assert "emb.npy is up to date: 1 image" in result.stderr.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.slow
@pytest.mark.parametrize("output", FORMS)
def test_after_a_kill_the_same_command_goes_on(place: Path, output: str) -> None:
    if output == "emb.lance":
        pytest.importorskip("lancedb")
    shutil.rmtree(place / output)
    for batches in (1, 1):
        kill_embed_after(batches, arguments(output), place)
    assert embed(place, output) == 2
    check_like_new(place, output)


@pytest.mark.parametrize(("output", "batches", "left"), [("layout", 2, 2), ("layout", 4, 0), ("emb.lance", 2, 2)])
def test_after_ctrl_c_the_same_command_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, output: str, batches: int, left: int
) -> None:
    """Of four batches the last is the captions'."""
    if output == "emb.lance":
        pytest.importorskip("lancedb")
    shutil.rmtree(place / output)
    with ctrl_c_after(batches, monkeypatch):
        assert cloob_here(*arguments(output), cwd=place).returncode == 130
    assert embed(place, output) == left
    check_like_new(place, output)


def test_faults_of_captions_are_told_once_where_a_run_begins_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(place / "layout")
    (place / "images" / "0001.txt").write_bytes(b"\0")
    with ctrl_c_after(2, monkeypatch):
        assert cloob_here(*arguments("layout", "--precision", "bf16"), cwd=place).returncode == 130
    result = cloob_here(*arguments("layout"), cwd=place)
    assert result.returncode == 0
    assert "what an unfinished run has embedded is not used" in result.stderr
    assert result.stderr.count("warning: captions with null characters") == 1


def test_a_lance_table_is_read_by_lancedb(made: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(made).open_table("emb")
    assert table.schema.names == ["path", "embedding", "size", "mtime_ns", "sha256"]
    assert table.schema.metadata[b"made_by"] == b"cloob embed"
    names, found, _ = rows(made, "emb.lance")
    np.testing.assert_array_equal(found, np.load(made / "emb.npy"))
    for name, row in zip(names, found, strict=True):
        assert table.search(row).limit(1).to_list()[0]["path"] == name


def test_texts_in_both_forms(place: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    (place / "texts.txt").write_text("a cat\nthe sea\n")
    command = ["embed", "--text", "texts.txt", "-m", "model"]
    for output, options in (
        ("t.npy", []),
        ("t", ["--layout", "clip-retrieval", "--dtype", "float32"]),
        ("t.lance", []),
    ):
        assert cloob_here(*command, "-o", output, *options, cwd=place).returncode == 0
    expected = np.load(place / "t.npy")
    np.testing.assert_array_equal(np.load(place / "t" / "text_emb" / "text_emb_0.npy"), expected)
    assert pq.read_table(place / "t" / "metadata" / "metadata_0.parquet").to_pydict() == {
        "caption": ["a cat", "the sea"]
    }
    table = lancedb.connect(place).open_table("t").to_arrow()
    assert table.column("text").to_pylist() == ["a cat", "the sea"]
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), expected)


def test_search_and_reference_read_every_form(place: Path) -> None:
    if not has_lancedb():
        pytest.skip("no LanceDB")
    reference = [
        "classify",
        "images",
        "--label",
        "cat",
        "-m",
        "model",
        "--unknown",
        "x",
        "--threshold",
        1,
        "--json",
        "-q",
    ]
    said = []
    for source in ("emb.npy", "layout", "layout/img_emb/img_emb_0.npy", "emb.lance"):
        found = cloob_here("search", source, "a cat", "-m", "model", "--json", cwd=place)
        classified = cloob_here(*reference, "--reference", source, cwd=place)
        assert (found.returncode, classified.returncode) == (0, 0), (source, found.stderr, classified.stderr)
        said.append((found.stdout, classified.stdout))
    assert said == [said[0]] * 4
    assert len(said[0][0].splitlines()) == 10


def test_wrong_usage_is_one_line_and_a_hint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_lancedb():
        pytest.skip("no LanceDB")
    (place / "photos.lance").mkdir()
    shutil.copy(place / "images" / "0000.ppm", place / "photos.lance")
    (place / "foreign" / "img_emb").mkdir(parents=True)
    np.save(place / "foreign" / "img_emb" / "img_emb_0.npy", np.zeros((2, 3), np.float32))
    (place / "parts" / "img_emb").mkdir(parents=True)
    np.save(place / "parts" / "img_emb" / "img_emb_1.npy", np.zeros((2, 3), np.float32))
    layout = ["--layout", "clip-retrieval"]
    cases: list[tuple[list[str], str]] = [
        (["-o", "x.npy", "--format", "lance"], "a Lance table is a folder NAME.lance"),
        (["-o", "x.lance", "--format", "npy"], "not --format npy"),
        (["-o", "x.lance", *layout, "--format", "lance"], "not --format lance"),
        (["-o", "a b.lance"], "no name of a Lance table"),
        (["-o", "photos.lance", "--force"], "is a folder, and no Lance table"),
        (["-o", "foreign", *layout], "and `cloob embed` did not write it"),
        (["-o", "parts", *layout, "--force"], "holds embeddings of another program: img_emb_1.npy"),
        (["-o", "x.npy", *layout], "no name of a folder"),
        (["-o", "emb.lance", *layout, "--force"], "emb.lance is a Lance table"),
        (["-o", "layout", *layout], "made with dtype float32, not with dtype float16"),
        (["-o", "x.parquet", "--engine", "ray", *layout], "leave --format and --layout out"),
        (["-o", "x.parquet"], "use one of: .npy .lance; or add --engine ray"),
        (["-o", "x.PARQUET", "--format", "npy"], "use one of: .npy .lance; or add --engine ray"),
    ]
    for options, message in cases:
        before = sorted(place.rglob("*"))
        result = cloob_here("embed", "images", "-m", "model", *options, cwd=place)
        assert (result.returncode, result.stdout) == (2, ""), (options, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert len(errors) == 2, result.stderr
        assert message in " ".join(errors)
        assert sorted(place.rglob("*")) == before
    (place / "texts.txt").write_text("a cat\n")  # which --engine ray does not embed
    texts = cloob_here("embed", "--text", "texts.txt", "-o", "x.parquet", "-m", "model", cwd=place)
    assert (texts.returncode, texts.stderr.splitlines()[-1]) == (2, "hint: use one of: .npy .lance")
    assert embed(place, "foreign layout") == 10
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.setattr("cloob_cli.inference.index.output_place.has_lancedb", lambda: False)
    missing = cloob_here("embed", "images", "-m", "model", "-o", "emb.lance", cwd=place)
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1] == "hint: pip install 'cloob[search]'"


def test_a_damaged_table_or_layout_is_refused_until_it_is_made_anew(place: Path) -> None:
    pytest.importorskip("lancedb")
    [data] = (place / "emb.lance" / "data").iterdir()
    data.write_bytes(data.read_bytes()[:500])
    images = place / "layout" / "img_emb" / "img_emb_0.npy"
    images.write_bytes(images.read_bytes()[:200])
    for output in ("emb.lance", "layout"):
        refused = cloob_here(*arguments(output), cwd=place)
        assert refused.returncode == 2, refused.stderr
        assert "--rebuild" in refused.stderr.splitlines()[-1]
        assert embed(place, output, "--rebuild") == 10
        check_like_new(place, output)


def damage(table: Path, what: str) -> None:
    """Empty the versions of a Lance table, cut the latest, or cut or remove its rows."""
    [data], [version] = (table / "data").iterdir(), (table / "_versions").glob("*.manifest")
    if what == "no version":
        for path in (table / "_versions").iterdir():
            path.unlink()
    elif what == "no data":
        data.unlink()
    else:
        path = version if what == "a cut version" else data
        path.write_bytes(path.read_bytes()[: 50 if what == "a cut version" else 500])


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("no version", r"Table 'emb' was not found"),
        ("a cut version", r"[^/(]+"),
        ("cut data", r"Invalid range [^/(]+ bytes"),
        ("no data", r"Not found: \S+\.lance"),
    ],
)
def test_a_damaged_table_of_ours_is_known_and_its_reason_is_short(place: Path, what: str, reason: str) -> None:
    pytest.importorskip("lancedb")
    damage(place / "emb.lance", what)
    for command in (arguments("emb.lance"), ["search", "emb.lance", "a cat", "-m", "model"]):
        refused = cloob_here(*command, cwd=place)
        assert refused.returncode == 2, refused.stderr
        error, hint = refused.stderr.splitlines()[-2:]
        assert re.fullmatch(rf"error: emb\.lance cannot be read \({reason}\)", error), error
        assert "--rebuild" in hint
    assert embed(place, "emb.lance", "--rebuild") == 10
    check_like_new(place, "emb.lance")


@pytest.mark.parametrize("made_by", [None, "cloob embed --engine ray", "cloob embed of another kind", "cloob embe"])
def test_a_damaged_table_of_others_is_not_replaced(place: Path, made_by: str | None) -> None:
    lancedb = pytest.importorskip("lancedb")
    table = pq.read_table(place / "emb.parquet").replace_schema_metadata({"made_by": made_by} if made_by else {})
    lancedb.connect(place).create_table("other", table)
    damage(place / "other.lance", "no version")
    refused = cloob_here(*arguments("other.lance", "--rebuild"), cwd=place)
    assert refused.returncode == 2
    assert "`cloob embed` did not write it" in refused.stderr


def test_a_reason_of_lance_is_its_first_sentence() -> None:
    from cloob_cli.inference.lance_tables import lance_reason

    nested = (
        "lance error: LanceError(IO): Generic N/A error: Wrapped error: Not found: Wrapped error: Not found: a.lance, "
    )
    nested += "/rustc/12ab/library/core/src/result.rs:1896:29, /x/y.rs:1:2"
    assert lance_reason(RuntimeError(nested)) == "Not found: a.lance"
    assert lance_reason(ValueError("Table 'emb' was not found")) == "Table 'emb' was not found"
    assert lance_reason(RuntimeError("lance error: LanceError(IO): /rustc/12ab/library/core.rs:1:2")).startswith(
        "lance"
    )
    assert lance_reason(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
