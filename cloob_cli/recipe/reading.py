"""Reading a recipe: from TOML (or the JSON that a run keeps of its own recipe), with `section.key=value` overrides.

Paths in a recipe are relative to the recipe's own folder; paths in an override are relative to the working directory.
The result holds absolute paths, so that a run can be resumed from elsewhere.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloob_cli import assets
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.errors import RecipeError
from cloob_cli.recipe.data import ADDRESS
from cloob_cli.recipe.recipe import Recipe
from cloob_cli.strict_model import incomplete, nearest, parse


def load_recipe(
    path: Path, overrides: list[str] | None = None, init: Callable[[Recipe], ModelConfig] | None = None
) -> Recipe:
    """Read a recipe and apply overrides like `train.steps=200`.

    Args:
        init: gives the configuration of a `model.init`, with which the recipe is filled in. It may have to fetch the
            model, so it is called last, with a recipe that is checked but for the towers. Without it a recipe that has
            a `model.init` stays like that: it cannot be trained.

    Raises:
        RecipeError: no such file, not TOML, an unknown key (the nearest is named), a wrong type or value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}", _recipes_like(path)) from None
    except (ValueError, OSError) as problem:  # both parsers' errors are ValueErrors
        raise RecipeError(f"{path} is not a readable recipe: {problem}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is not a readable recipe: it holds no sections")
    _resolve_paths(data, path.parent)
    for override in overrides or []:
        _apply(data, override)
    _resolve_paths(data, Path())  # what an override set; absolute ones stay
    model = data.get("model")
    name = model.get("init") if isinstance(model, dict) else None
    if init is not None and isinstance(name, str) and name and "architecture" not in data["model"]:
        data = filled_in(data, init(_without_towers(data, str(path))))
    return parse(Recipe, data, str(path), RecipeError)


def _without_towers(data: dict[str, Any], where: str) -> Recipe:
    """The recipe as far as it can be checked before the configuration of its `model.init` is known.

    Raises:
        RecipeError: whatever that model is, it is wrong.
    """
    data = {"tokenizer": {"kind": "init"}} | data | {"model": dict(data["model"])}
    for section, tower in incomplete(Recipe, data, [("model", "vision"), ("model", "text")], where, RecipeError):
        given = data[section].pop(tower)
        if "vocab_size" in given:  # the tokenizer has to agree with it
            data[section][tower] = {"width": 1, "layers": 1, "heads": 1, "vocab_size": given["vocab_size"]}
    return parse(Recipe, data, where, RecipeError)


def filled_in(data: dict[str, Any], init: ModelConfig) -> dict[str, Any]:
    """The keys of a recipe with `model.init`, those that it leaves out taken from that model's configuration."""

    def over(base: dict[str, Any], given: Any) -> Any:
        return base | given if isinstance(given, dict) else given or base

    base, model = init.model_dump(mode="json", exclude_none=True), dict(data["model"])
    for key in ("vision", "text", "preprocess"):
        model[key] = over(base[key], model.get(key))
    tokenizer = data.get("tokenizer", {"kind": "init"})
    if isinstance(tokenizer, dict) and tokenizer.get("kind") != "init" and isinstance(model["text"], dict):
        # A new vocabulary has its own size, not that of the model; one that the recipe names has to be equal.
        model["text"]["vocab_size"] = (data["model"].get("text") or {}).get("vocab_size")
    model = {"embed_dim": base["embed_dim"], "templates": base["templates"]} | model
    own = {key: value for key, value in base.items() if key in {"inv_tau", "scale_hopfield"}}
    objective = over(own, data.get("objective"))
    return data | {"model": model, "tokenizer": tokenizer, "objective": objective}


def _recipes_like(path: Path) -> str:
    """A hint: the shipped recipe that was meant, or which there are."""
    shipped = assets.shipped_recipes()
    near = nearest(path.stem, shipped)
    return f"did you mean {near!r}?" if near else f"the shipped ones are {', '.join(shipped)}"


# (section, key) of every key that holds paths.
PATH_KEYS = (("data", "train"), ("data", "validation"), ("validation", "zero_shot"), ("validation", "datasets"))
# The same for names of models, which may be paths.
MODEL_KEYS = (("model", "init"), ("teacher", "model"))


def _resolve_paths(data: dict[str, Any], base: Path) -> None:
    def resolve(value: Any) -> Any:
        if isinstance(value, str) and value:
            return value if ADDRESS.match(value) else os.path.abspath(base / Path(value).expanduser())
        return [resolve(item) for item in value] if isinstance(value, list) else value

    for section, key in PATH_KEYS:
        if isinstance(data.get(section), dict) and data[section].get(key) is not None:
            data[section][key] = resolve(data[section][key])
    for section, key in MODEL_KEYS:
        if isinstance(data.get(section), dict) and isinstance(value := data[section].get(key), str):
            data[section][key] = resolve(value) if _is_path(value) else value


def _is_path(model: str) -> bool:
    """True for the name of a model that is a path and not a zoo's (`registry.resolve.find_model` tells them apart)."""
    return model.startswith((".", "~")) or (("/" in model or "\\" in model) and not ADDRESS.match(model))


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"--set {override}: not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path is a string
    target = data
    *sections, last = key.strip().split(".")
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: '{section}' is not a section")
    if text.strip():
        target[last] = value
    else:
        target.pop(last, None)  # `--set section.key=` takes a key out: its default holds
