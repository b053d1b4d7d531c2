"""`cloob zoo` as it is typed: results on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import terminal
import torch
from command_line import cloob_here
from tiny_model import save_tiny_model

from cloob_cli import assets, console
from cloob_cli.checkpoint.card import model_card
from cloob_cli.checkpoint.folder import WEIGHTS_FILE, read_config
from cloob_cli.core.model import CloobModel
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.errors import ZooEntryError
from cloob_cli.registry import entries
from cloob_cli.registry.bundle import is_bundle
from cloob_cli.registry.resolve import find_model

Cloob = Callable[..., "subprocess.CompletedProcess[str]"]

RELEASED = {
    "cloob-rn50-yfcc",
    "cloob-rn50x4-yfcc",
    "cloob-vit-b-16-laion400m-16ep",
    "cloob-vit-b-16-laion400m-32ep",
    "japanese-cloob-vit-b-16",
    "cloob-xs-pictograms",
}
CLIP = {
    "clip-rn50-openai": "59.8 %",
    "clip-vit-b-32-openai": "63.3 %",
    "clip-vit-b-16-openai": "68.3 %",
    "clip-vit-l-14-openai": "75.5 %",
    "clip-vit-b-32-laion2b": "66.6 %",
    "clip-vit-b-16-datacomp-xl": "73.5 %",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOOB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLOOB_MODEL", raising=False)
    return tmp_path / "home"


@pytest.fixture
def cloob(tmp_path: Path, home: Path) -> Cloob:
    def command(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        try:
            return cloob_here(*arguments, cwd=tmp_path, **({"CLOOB_HOME": str(home)} | env))
        finally:
            console.configure(quiet=False)

    return command


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


@pytest.fixture
def installed(tiny: Path, cloob: Cloob) -> Path:
    done = cloob("zoo", "add", tiny, "--name", "mine", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    return Path(done.stdout.strip())


# ------------------------------------------------------------------ entries


def test_every_released_model_has_a_entry() -> None:
    assert set(entries.entry_names()) >= RELEASED
    assert {entry.name for entry in entries.all_entries() if entry.objective == "clip"} == CLIP.keys()


@pytest.mark.parametrize("name", sorted(path.stem for path in assets.zoo_folder().glob("*.toml")))
def test_an_entry_can_be_read_and_is_valid(name: str) -> None:
    entry = entries.find_entry(name)
    assert entry.summary
    assert entry.source.bundled or entry.homepage
    if entry.source.url and entry.source.sha256:
        assert entry.source.sha256 in entry.source.url, "the file name carries the hash of its author"
    if entry.recipe:
        assert entry.recipe in assets.shipped_recipes()


@pytest.mark.parametrize("name", sorted(path.stem for path in assets.zoo_folder().glob("*.toml")))
def test_what_an_entry_says_of_the_architecture_is_what_the_configuration_builds(name: str) -> None:
    entry = entries.find_entry(name)
    if entry.architecture in ARCHITECTURES:
        built = ARCHITECTURES[entry.architecture]
        assert (entry.embed_dim, entry.image_size) == (built["embed_dim"], built["vision"]["image_size"])
        with torch.device("meta"):
            model = CloobModel(ModelConfig.model_validate(built))
        assert entry.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "entry", [entry for entry in entries.all_entries() if entry.source.bundled], ids=lambda entry: entry.name
)
def test_a_bundled_model_is_the_one_that_its_entry_describes(entry: entries.ZooEntry, cloob: Cloob) -> None:
    folder = assets.bundled_folder(entry.name)
    checks = json.loads(cloob("zoo", "verify", folder, "--deep", "--json").stdout)
    assert {check["state"] for check in checks if check["what"] == "fingerprint"} == {"right"}
    config = read_config(folder)
    assert (config.vision.image_size, config.embed_dim) == (entry.image_size, entry.embed_dim)
    by_name = json.loads(cloob("zoo", "verify", entry.name, "--json").stdout)
    assert {check["state"] for check in by_name} == {"right"}
    assert (folder / WEIGHTS_FILE).stat().st_size <= 16 << 20
    assert entry.scores


WRONG_ENTRIES = {
    "an unknown key": ('licens = "MIT"', "did you mean 'license'"),
    "two places": ('[source]\nformat = "mljku"\nurl = "https://a/b"\nrepository = "a/b"', "exactly one"),
    "no place": ('[source]\nformat = "mljku"', "exactly one"),
    "plain http": ('[source]\nformat = "mljku"\nurl = "http://a/b"', "source.url"),
    "a hash that is none": ('[source]\nformat = "mljku"\nurl = "https://a/b"\nsha256 = "12"', "source.sha256"),
    "a share of more than all": ('[[scores]]\ndataset="x"\nmetric="y"\nvalue=101\nby="z"', "scores.0.value"),
}


@pytest.mark.parametrize(("text", "words"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES.keys())
def test_an_entry_with_wrong_fields_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    good = 'name = "x"\nsummary = "s"\narchitecture = "a"\nimage_size = 32\nembed_dim = 8\ndata = "d"\n'
    source = "" if "[source]" in text else '[source]\nformat = "cloob"\nbundled = true\n'
    first, rest = ("", text) if text.startswith("[") else (text + "\n", "")
    (tmp_path / "x.toml").write_text(good + first + source + rest)
    with pytest.raises(ZooEntryError) as caught:
        entries.read_entry(tmp_path / "x.toml")
    said = f"{caught.value.message} {caught.value.hint}"
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize("data", [b"name = ", b"\xff\xfe", b'name = "y"'])
def test_a_file_that_is_no_entry(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(data)
    with pytest.raises(ZooEntryError):
        entries.read_entry(tmp_path / "x.toml")


# ------------------------------------------------------------------ list, show, path, default


def test_list_in_a_pipe_is_plain_columns(cloob: Cloob, installed: Path) -> None:
    done = cloob("zoo", "list")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert lines[0] == ["name", "state", "default", "size", "pixels", "data", "score", "license"]
    assert {len(line) for line in lines} == {8}
    by_name = {line[0]: line for line in lines[1:]}
    assert set(by_name) == RELEASED | CLIP.keys() | {"mine"}
    assert by_name["cloob-rn50-yfcc"][1] == "not installed"
    assert by_name["mine"][1] == "installed"
    assert by_name["cloob-rn50-yfcc"][6] == "ImageNet zero-shot top-1 35.7 %"


@pytest.mark.skipif(not terminal.SUPPORTED, reason="no pseudo-terminals here")
def test_list_at_80_columns_has_a_line_a_model(home: Path, tmp_path: Path) -> None:
    shown = terminal.Terminal("zoo", "list", cwd=tmp_path, columns=80, CLOOB_HOME=str(home))
    assert shown.finish() == 0
    head, *rows = [line for line in shown.lines() if line]
    assert head.split() == ["name", "state", "default", "size", "score"]
    assert {row.split()[0] for row in rows} == RELEASED | CLIP.keys()
    assert len(rows) == len(RELEASED | CLIP.keys())
    assert max(map(len, rows)) <= 80
    scores = {row.split()[0]: row.partition("ImageNet ")[2] for row in rows}
    assert scores.pop("cloob-xs-pictograms") == ""  # it was made for drawings
    assert scores == {
        "cloob-rn50-yfcc": "35.7 %",
        "cloob-rn50x4-yfcc": "39.0 %",
        "cloob-vit-b-16-laion400m-16ep": "61.2 %",
        "cloob-vit-b-16-laion400m-32ep": "62.8 %",
        "japanese-cloob-vit-b-16": "54.6 %",
        **CLIP,
    }


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "cloob-rn50-yfcc",
            [(28.9, 21.8), (7.9, 6.9), (55.1, 48.0), (8.1, 7.9), (25.3, 27.2), (4.1, 3.7), (35.7, 34.6), (34.6, 33.4)],
        ),
        (
            "cloob-rn50x4-yfcc",
            [(32.0, 20.8), (9.3, 8.1), (54.3, 50.1), (11.8, 9.4), (31.9, 31.0), (6.1, 3.5), (39.0, 37.7), (37.3, 35.9)],
        ),
    ],
)
def test_the_paper_s_scores_with_the_clip_beside_each(name: str, published: list[tuple[float, float]]) -> None:
    entry = entries.find_entry(name)
    names = ["Birdsnap", "Country211", "Flowers102", "GTSRB", "UCF101", "Stanford Cars", "ImageNet", "ImageNet V2"]
    assert [score.dataset for score in entry.scores] == names
    assert [(score.value, score.clip) for score in entry.scores] == published
    assert all("yfcc_table2.png" in score.by for score in entry.scores)


def test_a_model_s_own_entry_has_a_column_for_the_clip_beside_it() -> None:
    config = ModelConfig.model_validate(ARCHITECTURES["RN50-quickgelu"])
    text = model_card(config, scores=entries.score_rows(entries.find_entry("cloob-rn50-yfcc")))
    assert "| data | measure | score | CLIP, same data | by |\n| --- | --- | --- | --- | --- |" in text
    assert "| ImageNet | zero-shot top-1 | 35.7 % | 34.6 % | its authors" in text
    own = model_card(config, scores=entries.score_rows(entries.find_entry("cloob-xs-pictograms")))
    assert "CLIP" not in own.partition("| data |")[2]


def test_list_only_what_is_on_this_machine(cloob: Cloob, installed: Path) -> None:
    models = json.loads(cloob("zoo", "list", "--installed", "--json").stdout)
    assert {entry["name"] for entry in models} == {"cloob-xs-pictograms", "mine"}


def test_list_as_json(cloob: Cloob, installed: Path) -> None:
    models = {entry["name"]: entry for entry in json.loads(cloob("zoo", "list", "--json").stdout)}
    assert models["mine"]["path"] == str(installed)
    assert models["mine"]["image_size"] == 32
    assert models["mine"]["size_bytes"] == sum(path.stat().st_size for path in installed.iterdir())
    rn50 = models["cloob-rn50-yfcc"]
    assert (rn50["state"], rn50["path"], rn50["parameters"]) == ("not installed", None, 102_007_137)


def test_show_gives_the_whole_entry(cloob: Cloob) -> None:
    name = "cloob-vit-b-16-laion400m-16ep"
    shown = json.loads(cloob("zoo", "show", name, "--json").stdout)
    written = tomllib.loads((assets.zoo_folder() / f"{name}.toml").read_text())
    assert shown["source"] | {"bundled": False} == written["source"] | {"bundled": False}
    assert shown["scores"] == written["scores"]
    plain = cloob("zoo", "show", name).stdout
    assert f"source.sha256\t{written['source']['sha256']}" in plain.splitlines()


def test_show_an_installed_model_and_a_folder(cloob: Cloob, installed: Path, tiny: Path) -> None:
    shown = json.loads(cloob("zoo", "show", "mine", "--json").stdout)
    assert shown["vision"]["image_size"] == 32
    assert shown["installed"]["origin"] == str(tiny)
    assert shown["state"] == "installed"
    folder = json.loads(cloob("zoo", "show", tiny, "--json").stdout)
    assert (folder["path"], folder["state"]) == (str(tiny), "a folder")


def test_show_is_short_for_a_model_without_a_entry(cloob: Cloob, installed: Path) -> None:
    shown = dict(line.split("\t") for line in cloob("zoo", "show", "mine").stdout.splitlines())
    assert len(shown) <= 20
    assert shown["path"] == str(installed)
    assert shown["images"] == "vit, width 32, 32 x 32 pixels"


def test_a_training_run_s_folder_stands_for_its_model(cloob: Cloob, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    tiny.rename(run / "model")
    done = cloob("zoo", "export", run, "--to", "open_clip", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert cloob("zoo", "bundle", run, "-o", tmp_path / "x.tar").returncode == 0
    assert cloob("zoo", "pull", tmp_path / "x.tar").stdout.endswith("/models/x\n")


def test_path(cloob: Cloob, installed: Path) -> None:
    done = cloob("zoo", "path", "mine")
    assert (done.returncode, done.stdout) == (0, f"{installed}\n")
    missing = cloob("zoo", "path", "cloob-rn50-yfcc")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "cloob zoo pull cloob-rn50-yfcc" in missing.stderr


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "mine"], ["path", "mine"], ["default"]])
def test_looking_at_installed_models_needs_no_torch(installed: Path, home: Path, arguments: list[str]) -> None:
    code = f"""
import sys
from cloob_cli.main import run
sys.argv = ["cloob", "zoo", *{arguments!r}]
try:
    run()
finally:
    heavy = {{"torch", "huggingface_hub", "httpx2", "accelerate", "pyarrow", "PIL"}} & set(sys.modules)
    print("LOADED", sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout
    assert done.stderr.endswith("LOADED []\n")


@pytest.mark.parametrize("command", ["show", "path", "verify", "pull", "default", "rm"])
def test_a_nearly_right_name_is_suggested(cloob: Cloob, installed: Path, command: str) -> None:
    done = cloob("zoo", command, "mime")
    assert done.returncode == 2
    assert "error: " in done.stderr
    if command != "pull":
        assert "did you mean 'mine'?" in done.stderr


def test_default(cloob: Cloob, installed: Path, tiny: Path) -> None:
    assert cloob("zoo", "default").stdout == "cloob-xs-pictograms\n"
    assert cloob("zoo", "default", "mine").stdout == "mine\n"
    assert find_model(None) == installed
    assert cloob("zoo", "default", tiny).stdout == f"{tiny}\n"
    assert find_model(None) == tiny
    cloob("zoo", "default", "mine")
    assert cloob("zoo", "rm", "mine", "-y").returncode == 0
    assert cloob("zoo", "default").stdout == "cloob-xs-pictograms\n"


# ------------------------------------------------------------------ verify


def test_verify_right_and_wrong(cloob: Cloob, installed: Path) -> None:
    done = cloob("zoo", "verify", "mine")
    assert done.returncode == 0
    assert "wrong" not in done.stdout
    weights = installed / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    done = cloob("zoo", "verify", "mine")
    assert done.returncode == 1
    assert "error: mine is not what was stored: model.safetensors" in done.stderr
    checks = {check["what"]: check["state"] for check in json.loads(cloob("zoo", "verify", "mine", "--json").stdout)}
    assert checks["model.safetensors"] == "wrong"
    assert checks["config.json"] == "right"


def test_verify_names_a_missing_file(cloob: Cloob, installed: Path) -> None:
    (installed / "tokenizer.json").unlink()
    done = cloob("zoo", "verify", "mine")
    assert done.returncode == 1
    assert "tokenizer.json\tmissing" in done.stdout


def spoil_configuration(folder: Path, **vision: object) -> None:
    """Change what the model is said to be, with hashes and metadata that agree: only computing shows it."""
    import hashlib

    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    config["vision"] |= vision
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"config": json.dumps(config)})
    record = json.loads((folder / "installed.json").read_text())
    for name in ("config.json", "model.safetensors"):
        record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "installed.json").write_text(json.dumps(record))


def test_verify_deep_finds_a_wrong_activation_that_no_hash_shows(cloob: Cloob, installed: Path) -> None:
    assert cloob("zoo", "verify", "mine", "--deep").returncode == 0
    spoil_configuration(installed, activation="quick_gelu")
    assert cloob("zoo", "verify", "mine").returncode == 0
    done = cloob("zoo", "verify", "mine", "--deep")
    assert done.returncode == 1
    assert "fingerprint\twrong\tthe image tower computes other embeddings" in done.stdout


def test_verify_deep_without_a_fingerprint(cloob: Cloob, tiny: Path) -> None:
    (tiny / "fingerprint.safetensors").unlink()
    assert cloob("zoo", "verify", tiny).returncode == 0
    done = cloob("zoo", "verify", tiny, "--deep")
    assert done.returncode == 1
    assert "fingerprint\tmissing" in done.stdout


# ------------------------------------------------------------------ rm, prune


def test_rm_asks_says_and_removes(cloob: Cloob, installed: Path) -> None:
    dry = cloob("zoo", "rm", "mine", "--dry-run")
    assert (dry.returncode, installed.is_dir()) == (0, True)
    assert str(installed) in dry.stdout
    assert "would be freed" in dry.stderr
    refused = cloob("zoo", "rm", "mine")
    assert (refused.returncode, installed.is_dir()) == (2, True)
    done = cloob("zoo", "rm", "mine", "-y")
    assert (done.returncode, installed.exists()) == (0, False)
    assert list(installed.parent.iterdir()) == []


def test_rm_several_or_none(cloob: Cloob, installed: Path, tiny: Path) -> None:
    assert cloob("zoo", "add", tiny, "--name", "other").returncode == 0
    assert cloob("zoo", "rm", "mine", "nosuch", "-y").returncode == 2
    assert installed.is_dir()
    assert cloob("zoo", "rm", "mine", "other", "mine", "-y").returncode == 0
    assert list(installed.parent.iterdir()) == []


def test_the_bundled_model_cannot_be_removed(cloob: Cloob, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(assets, "bundled_folder", lambda name: tiny)
    done = cloob("zoo", "rm", "cloob-xs-pictograms", "-y")
    assert done.returncode == 1
    assert "part of the package" in done.stderr
    assert tiny.is_dir()


def test_prune_removes_what_interrupted_pulls_left_and_nothing_else(cloob: Cloob, home: Path, installed: Path) -> None:
    left = [
        home / "downloads" / "0123456789abcdef.partial",
        home / "downloads" / "0123456789abcdef.json",
        home / "downloads" / "fedcba9876543210.complete",
        home / "quarantine" / "12345678-x.pt",
        home / "models" / ".mine.abc.partial" / "model.safetensors",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    dry = cloob("zoo", "prune", "--dry-run")
    assert len(dry.stdout.splitlines()) == 1 + len(left)
    assert "5.0 kB would be freed" in dry.stderr
    assert all(path.exists() for path in left)
    assert cloob("zoo", "prune", "-y").returncode == 0
    assert not any(path.exists() for path in left)
    assert cloob("zoo", "verify", "mine").returncode == 0
    assert "nothing to remove" in cloob("zoo", "prune", "-y").stderr


def test_prune_removes_embeddings_that_were_not_used_for_long(cloob: Cloob, home: Path) -> None:
    import torch

    from cloob_cli.evaluation.embedding_cache import Kept, Store

    folder = home / "evaluation"
    store = Store(folder)
    store.write({"name": "unused"}, Kept({"x": torch.zeros(2)}, {}))
    [unused] = folder.iterdir()
    store.write({"name": "read again"}, Kept({"x": torch.zeros(2)}, {}))
    [read] = set(folder.iterdir()) - {unused}
    for path in (unused, read):
        os.utime(path, (0, 0))
    assert store.read({"name": "read again"})
    dry = cloob("zoo", "prune", "--dry-run")
    assert [line.split("\t")[:2] for line in dry.stdout.splitlines()[1:]] == [
        [str(unused), "embeddings, unused for 30 days"]
    ]
    assert cloob("zoo", "prune", "-y").returncode == 0
    assert list(folder.iterdir()) == [read]


def test_prune_removes_locks_that_nobody_holds(cloob: Cloob, home: Path, installed: Path) -> None:
    from cloob_cli.registry.locks import lock

    (home / "locks").mkdir(exist_ok=True)
    (home / "locks" / "0123456789abcdef.lock").touch()
    with lock("x"):
        cloob("zoo", "prune", "-y")
        assert len(list((home / "locks").iterdir())) == 1
    cloob("zoo", "prune", "-y")
    assert list((home / "locks").iterdir()) == []


def test_whoever_waits_for_a_lock_that_is_pruned_gets_another(home: Path) -> None:
    import threading

    from cloob_cli.registry.locks import lock, remove_unheld

    inside, most, guard = 0, 0, threading.Lock()

    def hold() -> None:
        nonlocal inside, most
        for _ in range(20):
            with lock("shared"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        remove_unheld()
    assert most == 1


def test_prune_leaves_a_download_in_progress_alone(cloob: Cloob, home: Path) -> None:
    from cloob_cli.registry.locks import lock, lock_name

    path = home / "downloads" / f"{lock_name('https://example.com/x.pt')}.partial"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    with lock("https://example.com/x.pt"):
        cloob("zoo", "prune", "-y")
        assert path.exists()
    cloob("zoo", "prune", "-y")
    assert not path.exists()


# ------------------------------------------------------------------ pull, convert, bundle


def test_pull_prints_the_path_last(cloob: Cloob, tiny: Path, home: Path) -> None:
    done = cloob("zoo", "pull", tiny)
    assert done.stdout.splitlines()[-1] == str(home / "models" / "tiny")
    quiet = cloob("zoo", "pull", tiny, "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{home / 'models' / 'tiny'}\n", "")


def test_pull_as_json(cloob: Cloob, tiny: Path, home: Path) -> None:
    planned = json.loads(cloob("zoo", "pull", tiny, "--dry-run", "--json").stdout)
    assert (planned["name"], planned["folder"]) == ("tiny", str(home / "models" / "tiny"))
    pulled = json.loads(cloob("zoo", "pull", tiny, "--json").stdout)
    assert (pulled["name"], pulled["path"], pulled["origin"]) == ("tiny", str(home / "models" / "tiny"), str(tiny))
    assert pulled["files"].keys() >= {"config.json", "model.safetensors"}


def test_pull_the_bundled_model_under_another_name(cloob: Cloob, home: Path) -> None:
    done = cloob("zoo", "pull", "cloob-xs-pictograms", "--name", "foo")
    assert done.stdout == f"{home / 'models' / 'foo'}\n", done.stderr
    assert cloob("zoo", "verify", "foo").returncode == 0
    kept = cloob("zoo", "pull", "cloob-xs-pictograms")
    assert kept.stdout == f"{assets.bundled_folder('cloob-xs-pictograms')}\n"


def test_pull_dry_run_of_a_entry(cloob: Cloob, home: Path) -> None:
    done = cloob("zoo", "pull", "japanese-cloob-vit-b-16", "--dry-run", "--offline")
    said = dict(line.split("\t") for line in done.stdout.splitlines())
    assert said["from"] == "hf://rinna/japanese-cloob-vit-b-16"
    assert said["download"] == "787.0 MB"
    assert not home.exists()


def test_pull_offline_says_how_to_bring_the_file(cloob: Cloob) -> None:
    done = cloob("zoo", "pull", "cloob-rn50-yfcc", "--offline")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--from FILE" in done.stderr.splitlines()[-1]


def test_a_wrong_sha256_option_is_wrong_usage(cloob: Cloob) -> None:
    assert cloob("zoo", "pull", "https://example.com/x.pt", "--sha256", "12").returncode == 2


def test_convert_writes_a_new_folder_only(cloob: Cloob, tmp_path: Path, tiny: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "mljku_vit"
    done = cloob("zoo", "convert", golden, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr
    assert "logit_scale_hopfield" in done.stderr
    assert cloob("zoo", "convert", golden, "-o", tiny).returncode == 2
    assert cloob("zoo", "convert", tmp_path / "nothing.pt", "-o", tmp_path / "b").returncode == 1
    assert not (tmp_path / "b").exists()


def test_bundle_and_back(cloob: Cloob, installed: Path, tmp_path: Path) -> None:
    assert cloob("zoo", "bundle", "mine", "-o", tmp_path / "m.tar").returncode == 0
    assert cloob("zoo", "rm", "mine", "-y").returncode == 0
    done = cloob("zoo", "pull", tmp_path / "m.tar")
    assert done.stdout == f"{installed}\n", done.stderr
    assert cloob("zoo", "verify", "mine").returncode == 0


def test_a_bundle_replaces_bundles_only(cloob: Cloob, installed: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.tar"
    output.write_bytes(b"somebody's")
    done = cloob("zoo", "bundle", "mine", "-o", output)
    assert (done.returncode, done.stdout, output.read_bytes()) == (2, "", b"somebody's")
    assert "is no bundle" in done.stderr
    assert "--force" in done.stderr
    for further in (["--force"], []):
        assert cloob("zoo", "bundle", "mine", "-o", output, *further).returncode == 0
    assert is_bundle(output)


def test_the_earlier_name_of_a_model_means_the_model_and_stays_taken(cloob: Cloob) -> None:
    assert entries.find_entry("cloob-vit-xs-pictograms").name == "cloob-xs-pictograms"
    shown = cloob("zoo", "path", "cloob-vit-xs-pictograms")
    assert shown.stdout == f"{assets.bundled_folder('cloob-xs-pictograms')}\n"
    refused = cloob(
        "zoo", "add", str(assets.bundled_folder("cloob-xs-pictograms")), "--name", "cloob-vit-xs-pictograms"
    )
    assert refused.returncode == 1
    assert "is the name of a model of the zoo" in refused.stderr
