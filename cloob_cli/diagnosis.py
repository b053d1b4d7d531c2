"""Collect system information for bug reports: versions, devices, folders, decoders, and warnings."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from cloob_cli.version import __version__

_PACKAGES = (
    "torch",
    "accelerate",
    "numpy",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "ftfy",
    "triton",
    "transformers",
    "open_clip_torch",
    "onnx",
    "onnxruntime",
    "pillow-heif",
    "matplotlib",
)
_VARIABLES = (
    "CLOOB_HOME",
    "CLOOB_MODEL",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "NO_COLOR",
)


def diagnose() -> dict[str, Any]:
    """Collect everything as plain values; `warnings` is a list of sentences, empty where nothing looks wrong."""
    devices, chosen, warnings = _devices()
    model, model_warnings = default_model()
    folders = _folders()
    return {
        "versions": _versions(),
        "devices": devices,
        "used": chosen,
        "default_model": model,
        "folders": folders,
        "decoders": decoders(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "warnings": [*warnings, *model_warnings, *_folder_warnings(folders)],
    }


def default_model() -> tuple[dict[str, str], list[str]]:
    """Return the default model with its source (`chosen_by`), and warnings where it does not exist."""
    from cloob_cli import assets
    from cloob_cli.checkpoint.folder import is_model_folder
    from cloob_cli.convert.folder_formats import foreign_form
    from cloob_cli.errors import CloobError
    from cloob_cli.registry import inventory
    from cloob_cli.registry.resolve import find_model

    name = inventory.default_model()
    chosen = "CLOOB_MODEL" if os.environ.get("CLOOB_MODEL") else "cloob zoo default"
    model = {"name": name, "chosen_by": chosen if name != assets.BUNDLED_MODEL else "nobody: it is in the package"}
    if name.startswith("hf://"):  # to look for it could mean to download it
        return model, []
    try:
        folder = find_model(name)
    except CloobError as problem:
        hint = f" ({problem.hint})" if problem.hint else ""
        return model, [f"{model['chosen_by']} names a model that is not there: {problem.message}{hint}"]
    if not (is_model_folder(folder) or foreign_form(folder)):
        return model, [f"{model['chosen_by']} names {folder}, which is not a model folder"]
    return model, []


def decoders() -> dict[str, bool]:
    """Availability of the decoders that depend on the build of Pillow or on an extra."""
    from PIL import features

    return {
        "jpeg": bool(features.check("jpg")),
        "libjpeg-turbo": bool(features.check_feature("libjpeg_turbo")),
        "png": bool(features.check("zlib")),
        "webp": bool(features.check("webp")),
        "avif": bool(features.check("avif")) if "avif" in features.modules else False,
        "jpeg 2000": bool(features.check("jpg_2000")),
        "tiff": bool(features.check("libtiff")),
        "heif": util.find_spec("pillow_heif") is not None,
    }


def unusable_gpu(torch: Any) -> str | None:
    """Explain why torch cannot use the GPU of this machine; None where it can, or where there is no GPU.

    Args:
        torch: the module itself.
    """
    if torch.cuda.is_available():
        return None
    if _has_nvidia_gpu():
        if torch.version.cuda is None:
            return f"there is an NVIDIA GPU, but torch {torch.__version__} was built without CUDA: install a CUDA build"
        return (
            f"there is an NVIDIA GPU, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it: "
            "the driver is older than this CUDA, or CUDA_VISIBLE_DEVICES hides the GPU"
        )
    if Path("/dev/kfd").exists() and torch.version.hip is None:
        return f"there is an AMD GPU, but torch {torch.__version__} was built without ROCm: install a ROCm build"
    if sys.platform == "darwin" and platform.machine() == "arm64" and not torch.backends.mps.is_available():
        return f"this is an Apple GPU, but torch {torch.__version__} cannot use it (MPS needs macOS 12.3 or newer)"
    return None


def _versions() -> dict[str, str]:
    found = {"cloob": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> tuple[list[dict[str, Any]], dict[str, str], list[str]]:
    import torch

    from cloob_cli.core.device import pick_device, pick_dtype

    found: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    ]
    warnings = []
    if torch.cuda.is_available():
        built_for = set(torch.cuda.get_arch_list())
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "device": f"cuda:{index}",
                    "name": properties.name,
                    "memory_bytes": properties.total_memory,
                    "capability": f"{properties.major}.{properties.minor}",
                }
            )
            if not _runs_on(properties.major, properties.minor, built_for):
                warnings.append(
                    f"{properties.name} has compute capability {properties.major}.{properties.minor}, for which this "
                    f"torch was not built ({', '.join(sorted(built_for))})"
                )
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    if problem := unusable_gpu(torch):
        warnings.append(problem)
    device = pick_device()
    why = {"cuda": "the first CUDA device", "mps": "no CUDA device, but Apple's", "cpu": "no GPU that torch can use"}
    dtype = str(pick_dtype(device)).removeprefix("torch.")
    return found, {"device": str(device), "why": why[device.type], "inference_dtype": dtype}, warnings


def _runs_on(major: int, minor: int, built_for: set[str]) -> bool:
    """True where the build has code for this GPU: its own, an earlier minor's of the same major, or portable PTX."""
    for name in built_for:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")  # sm_90a and the like
        if not digits.isdigit():
            continue
        built = divmod(int(digits), 10)
        if (kind == "sm" and built[0] == major and built[1] <= minor) or (
            kind == "compute" and built <= (major, minor)
        ):
            return True
    return not built_for


def _has_nvidia_gpu() -> bool:
    return (
        Path("/proc/driver/nvidia/gpus").is_dir() or Path("/dev/nvidia0").exists() or bool(shutil.which("nvidia-smi"))
    )


def _folders() -> dict[str, dict[str, Any]]:
    from huggingface_hub import constants

    from cloob_cli import assets
    from cloob_cli.atomic_files import existing_folder
    from cloob_cli.registry import paths
    from cloob_cli.registry.storage import free_space

    places = {
        "installed models": paths.home(),
        "Hub cache": Path(constants.HF_HUB_CACHE),
        "zoo entries": assets.zoo_folder(),
        "recipes": assets.recipes_folder(),
    }
    return {
        what: {
            "path": str(path),
            "exists": os.path.isdir(path),
            "writable": os.access(existing_folder(path), os.W_OK | os.X_OK),  # or it could be made
            "free_bytes": free_space(path),
        }
        for what, path in places.items()
    }


def _folder_warnings(folders: dict[str, dict[str, Any]]) -> list[str]:
    warnings = [
        f"only {folder['free_bytes'] / 1e9:.1f} GB are free for {what} in {folder['path']}"
        for what, folder in folders.items()
        if what in {"installed models", "Hub cache"} and folder["free_bytes"] < 2e9
    ]
    home = folders["installed models"]
    if not home["writable"]:
        warnings.append(
            f"{home['path']} cannot be written: no model can be installed, and nothing is kept for the next run "
            "(CLOOB_HOME names another folder)"
        )
    return warnings
