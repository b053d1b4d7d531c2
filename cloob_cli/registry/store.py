"""Where models are: installed, bundled, on the Hub or in a folder, and which of them a name means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import assets
from cloob_cli.checkpoint.folder import (
    CONFIG_FILE,
    CONFIG_KEY,
    FINGERPRINT_FILE,
    KEPT_FILES,
    MODEL_FILES,
    README_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    is_model_folder,
    open_model,
    read_config,
    read_header,
    save_model,
    weights_sha256,
    write_config,
)
from cloob_cli.errors import UnknownModelError
from cloob_cli.schema import nearest

if TYPE_CHECKING:
    import torch

    from cloob_cli.core.model import CloobModel

__all__ = [
    "BUNDLED_MODEL",
    "CONFIG_FILE",
    "CONFIG_KEY",
    "FINGERPRINT_FILE",
    "KEPT_FILES",
    "MODEL_FILES",
    "README_FILE",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "bundled_folder",
    "default_file",
    "default_model",
    "find",
    "find_to_share",
    "home",
    "installed_folder",
    "installed_models",
    "is_model_folder",
    "load",
    "open_model",
    "read_config",
    "read_header",
    "save_model",
    "weights_sha256",
    "write_config",
]

BUNDLED_MODEL = "cloob-vit-xs-pictograms"


def home() -> Path:
    """The folder of installed models: `$CLOOB_HOME`, or `cloob` under Hugging Face's own home."""
    chosen = os.environ.get("CLOOB_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "cloob"


def installed_folder(name: str) -> Path:
    """Where a model of that name is installed, whether it is or not."""
    return home() / "models" / name


def bundled_folder(name: str) -> Path:
    """Where a model of that name is shipped in the package, whether it is or not."""
    return assets.bundled_weights_folder() / name


def installed_models() -> list[str]:
    """The names of the installed models, sorted; the bundled ones are not among them."""
    folder = home() / "models"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and is_model_folder(entry))


def default_file() -> Path:
    """The file that holds the name chosen with `cloob zoo default NAME`."""
    return home() / "default"


def default_model() -> str:
    """The model that is used when none is named: `$CLOOB_MODEL`, the zoo's default, or else the bundled one."""
    chosen = os.environ.get("CLOOB_MODEL")
    if chosen:
        return chosen
    try:
        return default_file().read_text(encoding="utf-8").strip() or BUNDLED_MODEL
    except (OSError, UnicodeDecodeError):
        return BUNDLED_MODEL


def find(name: str | Path | None = None) -> Path:
    """The model folder that `name` means.

    Args:
        name: a zoo name (installed or bundled), a path, `hf://ORG/REPO[@REVISION]`, or None for the default model.
            A zoo name comes before a folder of the same name in the working directory (write `./NAME` for that), also
            where the model is not installed, and what is shipped comes before what is installed.

    Raises:
        UnknownModelError: nothing has that name, or it has a card but is not installed.
        DownloadError: the Hub did not deliver.
    """
    if name is None:
        name = default_model()
    if isinstance(name, str):
        if name.startswith("hf://"):
            from cloob_cli.registry.hub import model_folder

            return model_folder(name)
        if _is_plain_name(name):
            # The bundled model is always the shipped one: nothing that is installed can take its place unasked.
            for folder in (bundled_folder(name), installed_folder(name)):
                if is_model_folder(folder):
                    return folder
            if (assets.zoo_folder() / f"{name}.toml").is_file():
                raise _unknown(name)
    path = Path(os.path.expanduser(name))  # which leaves a ~name alone that nobody has
    if path.is_dir():
        return path
    if path.is_file():
        raise UnknownModelError(f"{path} is a file, not a model folder", "name its folder, or `cloob zoo add` it")
    raise _unknown(str(name))


def find_to_share(name: str) -> Path:
    """The same for giving a model away; the folder of a training run stands for the model in it.

    Raises:
        UnknownModelError, DownloadError: as `find`.
    """
    folder = find(name)
    inner = folder / "model"
    return inner if is_model_folder(inner) and not is_model_folder(folder) else folder


def _is_plain_name(name: str) -> bool:
    return name not in {"", ".", ".."} and not name.startswith((".", "~")) and "/" not in name and "\\" not in name


def _unknown(name: str) -> UnknownModelError:
    from cloob_cli.registry.cards import card_names

    if name in card_names():
        return UnknownModelError(f"the model {name} is not installed", f"cloob zoo pull {name}")
    if not _is_plain_name(name):
        return UnknownModelError(f"there is no model folder {name}", "`cloob zoo list` shows the models with a name")
    near = nearest(name, {*card_names(), *installed_models()})
    return UnknownModelError(
        f"unknown model {name!r}", f"did you mean {near!r}?" if near else "`cloob zoo list` shows the models that exist"
    )


def load(
    name: str | Path | None = None, device: str | None = None, dtype: torch.dtype | str | None = None
) -> CloobModel:
    """Open the model that `name` means; see `cloob_cli.load`."""
    return open_model(find(name), device, dtype)
