"""Packages of the npm registry's form, made by a test, with the sources.toml that names them to the byte."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "recipes" / "pictograms"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

LIMITS = {"seed": "test", "per_set": 2, "per_label": 10, "near": 0.08}
VERSION = "1.2.3"


def tarball(path: Path, files: Mapping[str, Any]) -> str:
    """Write a package of JSON files; returns its integrity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return integrity(path)


def integrity(path: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def icon_set(icons: Mapping[str, Any], license: str = "MIT", side: int = 24, **more: Any) -> dict[str, Any]:
    """An icon set as Iconify writes them; an icon is its markup, or a dictionary."""
    entries = {name: {"body": icon} if isinstance(icon, str) else icon for name, icon in icons.items()}
    info = {"name": "Some Icons", "author": {"name": "Somebody"}, "license": {"title": license, "spdx": license}}
    return {"info": info, "icons": entries, "width": side, "height": side, **more}


def write_packages(
    folder: Path,
    sets: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    others: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    evaluation: str = "",
) -> Path:
    """Write tarballs into `folder` and a sources.toml beside them; returns its path.

    Args:
        sets: by name what the icon set holds and what sources.toml says of it.
        others: by the name of a further package its use and its files.
        evaluation: sections of sources.toml.
    """
    packages = {"icons": ("icons", {f"json/{name}.json": content for name, (content, _) in sets.items()})}
    lines = ["sets = ["]
    for name, (_, said) in sets.items():
        fields = {"name": name, "kind": "icon", "license": "MIT", **said}
        lines.append("  { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in fields.items()) + " },")
    lines += ["]", "[limits]", *(f"{key} = {json.dumps(value)}" for key, value in LIMITS.items())]
    for name, (use, files) in {**packages, **(others or {})}.items():
        sha = tarball(folder / f"{name}-{VERSION}.tgz", files)
        lines += ["[[packages]]", f'name = "{name}"', f'version = "{VERSION}"', 'license = "MIT"']
        lines += [f'integrity = "{sha}"', f'use = "{use}"']
    path = folder / "sources.toml"
    path.write_text("\n".join([*lines, evaluation]) + "\n", encoding="utf-8")
    return path
