"""Model cards, read back as the Hugging Face Hub reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cloob_cli import assets
from cloob_cli.checkpoint.card import model_card
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.export.parts import write_readme
from cloob_cli.registry.install import pull
from cloob_cli.registry.resolve import resolve

GOLDEN = Path(__file__).parents[1] / "golden"


def config(name: str = "tiny") -> ModelConfig:
    return ModelConfig.model_validate(ARCHITECTURES["RN50-quickgelu"] | {"name": name})


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = ModelCard(model_card(config(), summary="A test.", license="MIT", languages=["ja", "en"]))
    data = card.data.to_dict()
    assert data["library_name"] == "cloob"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert (data["license"], data["language"]) == ("mit", ["ja", "en"])
    assert "cloob" in data["tags"]
    assert card.text.lstrip().startswith("# tiny\n\nA test.\n")


def test_what_is_not_known_is_left_out() -> None:
    data = ModelCard(model_card(config())).data.to_dict()
    assert not {"license", "language"} & data.keys()


def test_a_value_cannot_break_a_table() -> None:
    text = model_card(config(), facts={"converted from": "a|b"}, scores=[{"data": "x|y", "score": "1 %"}])
    assert {len(row) for row in rows(text)} == {2}


def test_the_card_of_a_zoo_entry_carries_its_license_and_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, zoo = GOLDEN / "mljku_vit" / "checkpoint.pt", tmp_path / "zoo"
    zoo.mkdir()
    monkeypatch.setattr(assets, "zoo_folder", lambda: zoo)
    described = json.loads((GOLDEN / "mljku_vit" / "config.json").read_text())
    lines = ['name = "golden"', 'summary = "A golden model"', 'architecture = "a"', 'data = "random numbers"']
    lines += [f"image_size = {described['image_resolution']}", f"embed_dim = {described['embed_dim']}"]
    lines += ['license = "Apache-2.0"', 'languages = ["en"]', "[source]", 'format = "mljku"']
    lines += ['url = "https://example.com/checkpoint.pt"', "config = {"]
    lines[-1] += ", ".join(f"{key} = {json.dumps(value)}" for key, value in described.items()) + "}"
    (zoo / "golden.toml").write_text("\n".join(lines))
    folder = pull(resolve("golden", at_hand=checkpoint))
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    assert (card.data.to_dict()["license"], card.data.to_dict()["language"]) == ("apache-2.0", ["en"])
    assert "A golden model. Trained by its authors on random numbers." in card.text
    assert ["converted from", "https://example.com/checkpoint.pt"] in rows(card.text)
    assert "--model golden" in card.text


def test_the_card_of_an_export_names_the_program_that_opens_it(tmp_path: Path) -> None:
    source, target = tmp_path / "model", tmp_path / "export"
    source.mkdir()
    target.mkdir()
    (source / "README.md").write_text(model_card(config(), license="MIT", languages=["en"]), encoding="utf-8")
    write_readme(source, target, "open_clip", "\n## Use with open_clip\n")
    data = ModelCard((target / "README.md").read_text(encoding="utf-8")).data.to_dict()
    assert (data["library_name"], data["license"], data["language"]) == ("open_clip", "mit", ["en"])
