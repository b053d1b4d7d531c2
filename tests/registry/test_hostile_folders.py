"""Folders and bundles that were made to do harm: one line each, and everything else goes on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cloob_cli import load
from cloob_cli.checkpoint.folder import TOKENIZER_FILE, WEIGHTS_FILE, read_config
from cloob_cli.data.tokenizer import Tokenizer, clip_tokenizer, train_bpe
from cloob_cli.errors import ModelFolderError, RegistryError
from cloob_cli.registry import install, inventory, paths
from cloob_cli.registry.bundle import MANIFEST, write_bundle
from cloob_cli.registry.resolve import resolve

Cloob = Callable[..., Any]
DEEP = "[" * 100_000 + "]" * 100_000
DEEPER_THAN_ALLOWED = "[" * 200 + "]" * 200


def one_line(done: Any, *codes: int) -> None:
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    assert "panicked" not in done.stderr
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1


# ------------------------------------------------------------------ bundles that swell


def bundle_files(model_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(model_folder.iterdir())}


@pytest.fixture
def sparse(model_folder: Path, tmp_path: Path) -> Path:
    """A bundle of a few kilobytes; one of its members is a sparse file that unpacks to 100 GB."""
    import hashlib

    size = 100 << 30
    files = {"README.md": {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": size}}
    path = tmp_path / "sparse.tar"
    manifest = json.dumps({"cloob_bundle": 1, "name": "sparse", "files": files}).encode()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        first = tarfile.TarInfo(MANIFEST)
        first.size = len(manifest)
        tar.addfile(first, io.BytesIO(manifest))
        member = tarfile.TarInfo("README.md")
        member.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.name": "README.md",
            "GNU.sparse.size": str(size),
            "GNU.sparse.numblocks": "1",
            "GNU.sparse.map": f"{size - 1},1",
        }
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    assert path.stat().st_size < 20_000
    return path


def test_a_sparse_member_does_not_unpack(cloob: Cloob, sparse: Path) -> None:
    one_line(cloob("zoo", "pull", str(sparse)), 1)
    assert inventory.installed_models() == []


@pytest.mark.parametrize("said", [-1, 1, 10**15, "7", 3.0, None, True])
def test_the_sizes_of_the_manifest_bind(model_folder: Path, tmp_path: Path, said: object) -> None:
    path = tmp_path / "x.tar"
    write_bundle(model_folder, "x", sorted(bundle_files(model_folder)), path)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    manifest = json.loads(members[0][1])
    manifest["files"]["model.safetensors"]["bytes"] = said
    text = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for info, data in ((tarfile.TarInfo(MANIFEST), text), *members[1:]):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(RegistryError, match="refused"):
        install.pull(resolve(str(path)))
    assert inventory.installed_models() == []


def test_a_sparse_member_stops_at_what_the_manifest_says(sparse: Path, tmp_path: Path) -> None:
    """The same where the bundle is large enough for its claim: never a byte more than it says is written."""
    with sparse.open("r+b") as stream:
        stream.truncate(101 << 30)  # takes no room on the disk
    from cloob_cli.registry.bundle import extract_bundle

    (tmp_path / "out").mkdir()
    with pytest.raises(RegistryError, match="refused"):
        extract_bundle(sparse, tmp_path / "out", ["README.md"])
    assert list((tmp_path / "out").iterdir()) == []


def test_headers_within_headers_are_no_bundle(cloob: Cloob, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_bundle(model_folder, "x", ["README.md"], path)
    commented = tarfile.TarInfo("x")
    commented.pax_headers = {"comment": "y"}
    header = commented.tobuf(tarfile.PAX_FORMAT)[:1024]  # a block that describes the next one, and its text
    with tarfile.open(path) as tar:
        tar.next()
        second = tar.next()
        assert second is not None
        position = second.offset
    data = path.read_bytes()
    path.write_bytes(data[:position] + header * 3000 + data[position:])
    one_line(cloob("zoo", "pull", str(path)), 1)
    path.write_bytes(header * 3000 + data)
    assert cloob("zoo", "pull", str(path)).returncode in (1, 2)


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize("text", [DEEP, DEEPER_THAN_ALLOWED, '{"format_version": ' + "9" * 10_000 + "}"])
def test_a_configuration_nested_without_end(cloob: Cloob, model_folder: Path, text: str) -> None:
    good = paths.installed_folder("good")
    bad = paths.installed_folder("bad")
    for folder in (good, bad):
        folder.mkdir(parents=True)
        for path in model_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (bad / "config.json").write_text('{"source": ' + text + "}" if text.startswith("[") else text)
    (bad / "installed.json").write_text(text)
    done = cloob("zoo", "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert (listed["good"]["image_size"], listed["bad"]["image_size"]) == (32, None)
    one_line(cloob("zoo", "show", "bad"), 2)
    assert cloob("zoo", "verify", "bad").returncode == 1
    one_line(cloob("zoo", "pull", str(bad), "--name", "worse"), 1, 2)
    one_line(cloob("zoo", "add", str(bad), "--name", "worse"), 1, 2)


@pytest.mark.parametrize("levels", [100, 300, 900])
def test_a_sound_configuration_with_depths_in_it(cloob: Cloob, model_folder: Path, levels: int) -> None:
    """A configuration that can be read may still be too deep for what compares, writes and shows it."""
    path, weights = model_folder / "config.json", model_folder / WEIGHTS_FILE
    config = json.loads(path.read_text())
    text = json.dumps(config | {"source": {"a": "DEPTH"}}).replace('"DEPTH"', "[" * levels + "]" * levels)
    path.write_text(text)
    save_file(load_file(weights), weights, metadata={"config": text})
    with pytest.raises(ModelFolderError, match="nested"):
        read_config(model_folder)
    one_line(cloob("zoo", "show", str(model_folder)), 2)
    one_line(cloob("zoo", "pull", str(weights), "--name", "mine"), 2)


def test_a_configuration_in_the_weights_nested_without_end(model_folder: Path) -> None:
    weights = model_folder / WEIGHTS_FILE
    (model_folder / "config.json").unlink()
    for text in (DEEP, DEEPER_THAN_ALLOWED):
        save_file(load_file(weights), weights, metadata={"config": '{"source": {"a": ' + text + "}}"})
        with pytest.raises(ModelFolderError):
            read_config(model_folder)


# ------------------------------------------------------------------ tokenizers


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / TOKENIZER_FILE
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def split(pattern: dict[str, str]) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.update(
        pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    )


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a pattern that tries everything": split({"Regex": "(a+a+)+b"}),
    "another one": split({"Regex": "(a|aa)+$"}),
    "a pattern that matches nothing": split({"Regex": ""}),
    "a text that is nothing": split({"String": ""}),
    "patterns within sequences": lambda data: data["pre_tokenizer"]["pretokenizers"].insert(
        0,
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "(a+a+)+b"}, "behavior": "Isolated", "invert": False}
            ],
        },
    ),
    "a token above the vocabulary": lambda data: data["model"]["vocab"].update({"a</w>": 999_999}),
    "a special token above the vocabulary": lambda data: data["model"]["vocab"].update({"<end_of_text>": 10**6}),
    "an unknown token that is not there": lambda data: (
        data["model"].update(unk_token="nope"),
        data["model"]["vocab"].pop("a</w>"),
    ),
    "another model": lambda data: data.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}),
    "nested without end": lambda data: data.update(decoder=json.loads("[" * 400 + "]" * 400)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_tokenizer_is_one_line(cloob: Cloob, model_folder: Path, tmp_path: Path, change: Any) -> None:
    installed = install.pull(resolve(str(model_folder)))
    spoil(model_folder, change)
    one_line(cloob("zoo", "pull", str(model_folder), "--name", "bad"), 2)
    spoil(installed, change)
    assert cloob("zoo", "list").returncode == 0
    (tmp_path / "texts.txt").write_text("a" * 40 + "!\na\n")
    one_line(cloob("embed", "--text", "texts.txt", "-o", "x.npy", "--model", "tiny"), 2)


SENTENCES: dict[str, dict[str, Any]] = {
    "a pattern that tries everything": {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+a+)+b"}}},
    "a replacement of nothing": {"normalizer": {"type": "Replace", "pattern": {"String": ""}}},
    "a replacement that grows": {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": "x" * 10**6}},
    "steps over and over": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": " +"}}] * 2}
    },
    "a character map that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "an id in the template": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"X": {"id": "X", "ids": [999_999], "tokens": ["X"]}},
        }
    },
}


@pytest.mark.parametrize("parts", SENTENCES.values(), ids=SENTENCES.keys())
def test_a_hostile_tokenizer_of_sentence_pieces_is_one_line(parts: dict[str, Any]) -> None:
    from cloob_cli.core.model_config import TokenizerConfig

    filler = {"content": " "}
    data: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁", -2.0]],
            "byte_fallback": False,
        },
    }
    config = TokenizerConfig(kind="roberta")
    assert Tokenizer(json.dumps(data).encode(), config, 12).rows(["a a"])
    for name, part in parts.items():
        steps = part.get("normalizers", [part])
        data[name] = part | ({"normalizers": [filler | step for step in steps]} if "normalizers" in part else {})
        if part["type"] == "Replace":
            data[name] = filler | part
    with pytest.raises(ModelFolderError) as caught:
        Tokenizer(json.dumps(data).encode(), config, 12).rows(["a" * 40])
    assert "\n" not in caught.value.message


def test_a_text_tower_that_is_too_small_for_its_tokenizer_is_one_line(cloob: Cloob, tmp_path: Path) -> None:
    """CLIP's own vocabulary is let through with a smaller tower, as tests of converters need it; texts are not."""
    golden = Path(__file__).parents[1] / "golden" / "mljku_vit"
    assert cloob("zoo", "convert", str(golden), "-o", str(tmp_path / "out")).returncode == 0
    model = load(tmp_path / "out", device="cpu")
    assert model.tokenize is not None
    size = model.config.text.vocab_size
    with pytest.raises(ModelFolderError, match=f"the id 49407, the text tower has {size}"):
        model.tokenize(["a cat"])


def test_the_highest_id_counts_and_not_the_number_of_entries(tokenizer: Tokenizer) -> None:
    data = json.loads(tokenizer.to_json())
    entries = tokenizer.vocab_size
    data["model"]["vocab"]["a</w>"] = 5000
    assert Tokenizer(json.dumps(data).encode(), tokenizer.config, 12).vocab_size == 5001
    assert entries == len(data["model"]["vocab"])


def test_the_files_of_this_program_pass(tmp_path: Path) -> None:
    for name, made in (("clip", clip_tokenizer()), ("bpe", train_bpe(["a red bicycle", "the sea"], 540))):
        made.save(tmp_path / f"{name}.json")
        again = Tokenizer(tmp_path / f"{name}.json", made.config)
        assert again.rows(["a Red bicycle, 42!"]) == made.rows(["a Red bicycle, 42!"])
