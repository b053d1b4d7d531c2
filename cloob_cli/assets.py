"""Find the files that are shipped with the program: zoo entries, bundled weights, recipes, CLIP's tokenizer.

In a checkout the first three are in the top-level folders `zoo/` and `recipes/`; a wheel carries copies under `_data/`.
The checkout's own come first, so that an edited entry takes effect.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED_MODEL = "cloob-xs-pictograms"  # the model that is used where nobody chose one

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return _PACKAGE / "_data" / name


def zoo_folder() -> Path:
    """The folder of the zoo entries, `NAME.toml`."""
    return _folder("zoo")


def bundled_weights_folder() -> Path:
    """The folder with a model folder for every model that is shipped in the package."""
    return zoo_folder() / "weights"


def bundled_folder(name: str) -> Path:
    """The folder that a model of that name is shipped in, whether it exists or not."""
    return bundled_weights_folder() / name


def clip_tokenizer_file() -> Path:
    """The `tokenizer.json` of CLIP's vocabulary."""
    return _PACKAGE / "_tokenizers" / "clip.json"


def templates_folder() -> Path:
    """The folder of the HTML reports' templates."""
    return _PACKAGE / "_templates"


def recipes_folder() -> Path:
    """The folder of the shipped recipes, `NAME.toml`."""
    return _folder("recipes")


def suites_folder() -> Path:
    """The folder of the shipped evaluation suites, `NAME.toml`."""
    return recipes_folder() / "eval"


def find_recipe(name: str) -> Path:
    """The recipe that a user means by `name`: a path, or else the name of a shipped one, with or without .toml."""
    path = Path(name)
    if path.is_file() or path.parent != Path("."):  # a folder of that name, as in `recipes/`, is no recipe
        return path
    shipped = recipes_folder() / (path.name if path.suffix == ".toml" else f"{path.name}.toml")
    return shipped if shipped.exists() else path


def shipped_recipes() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))
