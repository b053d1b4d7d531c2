"""Shell completion: names of models and recipes, devices, precisions. Nothing here imports torch.

Where none of these fits, the shell goes on with files and folders.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def usable_models(incomplete: str) -> list[str]:
    """Names of the models that are on this machine."""
    from cloob_cli import assets
    from cloob_cli.checkpoint.folder import is_model_folder
    from cloob_cli.registry import entries, inventory

    bundled = [name for name in entries.entry_names() if is_model_folder(assets.bundled_folder(name))]
    return _fitting([*bundled, *inventory.installed_models()], incomplete)


def known_models(incomplete: str) -> list[str]:
    """Names of the models that have a zoo entry or are installed."""
    from cloob_cli.registry import entries, inventory

    return _fitting([*entries.entry_names(), *inventory.installed_models()], incomplete)


def installed_models(incomplete: str) -> list[str]:
    """Names of the models that were installed, and so can be removed."""
    from cloob_cli.registry import inventory

    return _fitting(inventory.installed_models(), incomplete)


def suites(incomplete: str) -> list[str]:
    """Shipped evaluation suites."""
    from cloob_cli import assets

    return _fitting(sorted(path.stem for path in assets.suites_folder().glob("*.toml")), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes."""
    from cloob_cli import assets

    return _fitting(assets.shipped_recipes(), incomplete)


def devices(incomplete: str) -> list[str]:
    """Names of the kinds of devices, and of the NVIDIA GPUs that the system knows."""
    gpus = Path("/proc/driver/nvidia/gpus")
    count = len(list(gpus.iterdir())) if gpus.is_dir() else 0
    return _fitting(["auto", "cpu", "cuda", "mps", *(f"cuda:{index}" for index in range(count))], incomplete)


def precisions(incomplete: str) -> list[str]:
    """Names of the precisions for inference."""
    return _fitting(PRECISIONS, incomplete)


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
