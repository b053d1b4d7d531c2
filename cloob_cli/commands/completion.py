"""What the shell completes: names of models and recipes, devices, precisions. Nothing here imports torch.

Where none of these fits, the shell goes on with files and folders.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def usable_models(incomplete: str) -> list[str]:
    """Models that are on this machine."""
    from cloob_cli.registry import cards, store

    bundled = [name for name in cards.card_names() if store.is_model_folder(store.bundled_folder(name))]
    return _fitting([*bundled, *store.installed_models()], incomplete)


def known_models(incomplete: str) -> list[str]:
    """Models that have a card or are installed."""
    from cloob_cli.registry import cards, store

    return _fitting([*cards.card_names(), *store.installed_models()], incomplete)


def installed_models(incomplete: str) -> list[str]:
    """Models that were installed, and so can be removed."""
    from cloob_cli.registry import store

    return _fitting(store.installed_models(), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes."""
    from cloob_cli import assets

    return _fitting(assets.shipped_recipes(), incomplete)


def devices(incomplete: str) -> list[str]:
    """Kinds of devices, and the NVIDIA GPUs that the system knows."""
    gpus = Path("/proc/driver/nvidia/gpus")
    count = len(list(gpus.iterdir())) if gpus.is_dir() else 0
    return _fitting(["auto", "cpu", "cuda", "mps", *(f"cuda:{index}" for index in range(count))], incomplete)


def precisions(incomplete: str) -> list[str]:
    """Precisions for inference."""
    return _fitting(PRECISIONS, incomplete)


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
