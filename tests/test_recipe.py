"""Recipes: every shipped one parses, and every mistake is named with the key that was meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import cloob_here
from tiny_run import settings, write_recipe

from cloob_cli import assets
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.errors import RecipeError
from cloob_cli.recipe import Recipe, load_recipe

SHIPPED = [
    "cc3m-rn50", "distil-rn50", "finetune-folder", "folder-quickstart", "lit-folder", "pictograms",
    "pictograms-continued", "pictograms-vit-xs",
]  # fmt: skip


def test_the_shipped_recipes_are_those_that_are_known():
    assert assets.shipped_recipes() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_parses_and_is_found_by_name(name):
    path = assets.find_recipe(name)
    assert path == assets.find_recipe(f"{name}.toml") == assets.recipes_folder() / f"{name}.toml"
    recipe = load_recipe(path)
    assert recipe.objective.name == "cloob"
    text = path.read_text(encoding="utf-8")
    assert "shared" not in text
    assert "cloob train" in text  # says how it is run


def test_a_folder_of_that_name_does_not_hide_a_shipped_recipe(monkeypatch):
    monkeypatch.chdir(assets.recipes_folder())
    assert Path("pictograms").is_dir()
    assert assets.find_recipe("pictograms") == assets.recipes_folder() / "pictograms.toml"


def test_cc3m_is_the_papers_setting():
    recipe = load_recipe(assets.find_recipe("cc3m-rn50"))
    assert (recipe.train.batch_size, recipe.train.epochs) == (512, 70)
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_steps) == (1e-3, 0.1, 20_000)
    assert (optimizer.schedule, optimizer.cycles) == ("cosine_restarts", 10)
    assert (recipe.objective.inv_tau, recipe.objective.scale_hopfield) == (30, 8)
    assert recipe.model.embed_dim == 1024
    assert recipe.model.vision is not None
    assert recipe.model.vision.layers == [3, 4, 6, 3]


@pytest.mark.parametrize("name", ["finetune-folder", "lit-folder"])
def test_recipes_for_folders_start_from_the_bundled_model_and_the_examples(name, tmp_path):
    done = cloob_here("train", name, "--dry-run", "--json", "--set", "model.init=cloob-xs-pictograms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["training pairs"] >= found["recipe"]["train"]["batch_size"]
    assert found["recipe"]["model"]["vision"]["kind"] == "resnet"
    assert found["recipe"]["tokenizer"]["kind"] == "init"


def test_the_quickstart_finds_the_example_images():
    recipe = load_recipe(assets.find_recipe("folder-quickstart"))
    assert isinstance(recipe.data.train, str)
    captioned = [p for p in Path(recipe.data.train).glob("*.png") if p.with_suffix(".txt").is_file()]
    assert len(captioned) >= recipe.train.batch_size


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.micro_batch_size=0", "greater than or equal to 1, or input should be 'auto' (got 0)"),
        ("train.micro_batch_size=many", "or input should be 'auto' (got 'many')"),
        ("train.stepz=3", "did you mean 'train.steps'?"),
        ("trian.steps=3", "did you mean 'train'?"),
        ("model.vision.patchsize=4", "did you mean 'model.vision.patch_size'?"),
        ("objective.objective=clip", "known keys: "),
        ("train.steps=many", "'train.steps'"),
        ("train.batch_size=1", "'train.batch_size'"),
        ("optimizer.beta1=1.0", "less than 1 (got 1.0)"),  # a mean that no gradient ever enters
        ("optimizer.beta2=1.0", "less than 1 (got 1.0)"),
        ("train.ema=1.0", "less than 1 (got 1.0)"),
        ("objective.name=clap", "'objective.name'"),
        ("model.architecture=RN51", "did you mean 'RN50'?"),
        ("model.vision.patch_size=7", "multiple of patch_size"),
        ("model.text.vocab_size=49408", "the tokenizer has"),
        ("tokenizer.kind=clip", "vocab_size goes with kind = 'bpe'"),
        ("augment.crop_scale=[0.9, 0.2]", "crop_scale is [low, high]"),
        ("train.gradient_accumulation=4", "unknown key 'train.gradient_accumulation'"),
        ("train.int=4", "unknown key 'train.int'"),  # as pydantic names the kinds of a value that may be of several
        ("train.steps", "not of the form section.key=value"),
        ("name.first=3", "'name' is not a section"),
        ("name='../evil'", "'name'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path, override, said):
    path = write_recipe(tmp_path / "r.toml", "pairs")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("name", "content"), [
    ("r.toml", b"name = "), ("r.toml", b"\xff\xfe\x00"), ("r.json", b"{"), ("r.json", b"[1]"), ("r.json", b"\xff"),
])  # fmt: skip
def test_a_file_that_is_no_recipe(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match="not a readable recipe"):
        load_recipe(tmp_path / name)


def test_a_missing_recipe_and_a_folder(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "nowhere.toml")
    with pytest.raises(RecipeError, match="not a readable recipe"):
        load_recipe(tmp_path)


def test_a_run_needs_a_length(tmp_path):
    recipe = settings("pairs")
    del recipe["train"]["steps"]
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=r"give train\.steps or train\.epochs"):
        load_recipe(tmp_path / "r.json")


def test_paths_belong_to_the_recipe_and_overrides_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = write_recipe(tmp_path / "recipes" / "r.toml", "../data/{00..03}.tar", validation__zero_shot=["sets/a"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(path)
    assert recipe.data.train == os.path.abspath(tmp_path / "data" / "{00..03}.tar")
    assert recipe.validation.zero_shot == [os.path.abspath(tmp_path / "recipes" / "sets" / "a")]
    recipe = load_recipe(path, ["data.train=mine", "validation.zero_shot=['one', '/two']"])
    assert recipe.data.train == os.path.abspath(tmp_path / "elsewhere" / "mine")
    assert recipe.validation.zero_shot == [os.path.abspath(tmp_path / "elsewhere" / "one"), os.path.abspath("/two")]
    absolute = load_recipe(path, [f"data.train=['{tmp_path / 'a.tar'}', 'b.tar']"])
    assert absolute.data.train == [str(tmp_path / "a.tar"), os.path.abspath("b.tar")]


def test_values_of_overrides_are_toml_or_else_text(tmp_path):
    path = write_recipe(tmp_path / "r.toml", "pairs")
    changes = ["train.steps=7", "objective.learn_inv_tau=true", "augment.crop_scale=[0.5, 1]", "name=my-model"]
    recipe = load_recipe(path, [*changes, "optimizer.learning_rate=1e-4", "data.separator=;"])
    assert (recipe.train.steps, recipe.objective.learn_inv_tau, recipe.name) == (7, True, "my-model")
    assert recipe.augment.crop_scale == (0.5, 1.0)
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.data.separator == ";"


def test_clipping_can_be_switched_off(tmp_path):
    path = write_recipe(tmp_path / "r.toml", "pairs", optimizer__gradient_clip=0)
    assert load_recipe(path).optimizer.gradient_clip == 0
    assert load_recipe(path, ["optimizer.gradient_clip=0.5"]).optimizer.gradient_clip == 0.5
    (tmp_path / "null.json").write_text(json.dumps(settings("pairs", optimizer__gradient_clip=None)))
    assert load_recipe(tmp_path / "null.json").optimizer.gradient_clip == 0
    with pytest.raises(RecipeError, match="greater than or equal to 0"):
        load_recipe(path, ["optimizer.gradient_clip=-1"])


def test_a_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "r.toml", "pairs"))
    (tmp_path / "again.json").write_text(recipe.model_dump_json())
    assert load_recipe(tmp_path / "again.json") == recipe
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_reading_a_recipe_needs_no_torch(tmp_path):
    path = write_recipe(tmp_path / "r.toml", "pairs")
    code = (
        "import sys; from pathlib import Path; from cloob_cli.recipe import load_recipe; "
        f"load_recipe(Path({str(path)!r})); assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_recipe_that_there_is_not_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "nosuch")
    assert "cc3m-rn50" in str(raised.value.hint)
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "cc3m-rn5")
    assert raised.value.hint == "did you mean 'cc3m-rn50'?"


INIT = 'name = "x"\n[model]\ninit = "some-model"\n[data]\ntrain = "pairs"\n[train]\nsteps = 1\n'


def never(recipe: Recipe) -> ModelConfig:
    raise AssertionError("the model was looked for")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stepz=3"], "did you mean 'train.steps'?"),
        (["train.steps=none"], "'train.steps'"),
        (["model.vision.widht=3"], "did you mean 'model.vision.width'?"),
        (["model.vision.image_size=-1"], "'model.vision.image_size'"),
        (["model.text.context_length=one"], "'model.text.context_length'"),
        (["model.vision=big"], "'model.vision'"),
        (["model.vision.image_size=64", "optimizer.layer_decay=1.5"], "'optimizer.layer_decay'"),
        (["model.vision.image_size=64", "data.train="], "'data.train' is missing"),
        (["train.micro_batch_size=9", "train.batch_size=8"], "micro_batch_size 9 is above batch_size 8"),
        (["tokenizer.kind=bpe"], "vocab_size goes with kind = 'bpe'"),
        (["tokenizer.kind=clip", "model.text.vocab_size=8192"], "is 8192, the tokenizer has 49408 entries"),
        (["model.embed_dim=0"], "'model.embed_dim'"),
    ],
)
def test_a_recipe_is_checked_before_its_model_is_looked_for(tmp_path, overrides, said):
    path = tmp_path / "r.toml"
    path.write_text(INIT)
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides, never)
    assert said in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.vision.image_size=96"],
        # Complete by what the schema asks for, but a vit has a patch_size, which comes from the model.
        ["model.vision.kind=vit", "model.vision.image_size=16", "model.vision.width=64", "model.vision.layers=2"],
        ["model.text.vocab_size=600"],  # the model's own size, it may be
        ["model.text.vocab_size=600", "tokenizer.kind=bpe", "tokenizer.vocab_size=600"],
        ["train.image_sizes=[[0, 32], [0.5, 64]]"],
    ],
)
def test_what_the_model_is_to_say_is_left_open_until_then(tmp_path, overrides):
    path = tmp_path / "r.toml"
    path.write_text(INIT)
    asked = []

    def init(recipe: Recipe) -> ModelConfig:
        asked.append((recipe.name, recipe.model.init, recipe.train.steps))
        raise RecipeError("as far as that")

    with pytest.raises(RecipeError, match="as far as that"):
        load_recipe(path, overrides, init)
    assert asked == [("x", "some-model", 1)]


def test_missing_data_are_told_before_the_model_is_looked_for(tmp_path):
    (tmp_path / "r.toml").write_text(INIT)
    done = cloob_here("train", "r.toml", "--set", "model.init=hf://no/such", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert f"error: no data at {tmp_path / 'pairs'}" in done.stderr.replace("\n", " ")
