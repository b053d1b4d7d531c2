"""Verify an installed model: the hashes of its files, and on request the embeddings that it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloob_cli import assets
from cloob_cli.atomic_files import sha256_of
from cloob_cli.checkpoint.behavior_fingerprint import FINGERPRINT_FILE
from cloob_cli.checkpoint.folder import KEPT_FILES, read_config
from cloob_cli.errors import CloobError
from cloob_cli.registry import entries
from cloob_cli.registry.inventory import install_record
from cloob_cli.registry.resolve import find_model


@dataclass(frozen=True)
class Check:
    """The result of one comparison with what is recorded of a model."""

    what: str
    state: Literal["right", "wrong", "missing", "not recorded", "not here"]
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.state in {"wrong", "missing"}


def verify_model(name: str, deep: bool = False) -> list[Check]:
    """Check the files of a model against the hashes that were recorded when it was installed or shipped.

    Args:
        name: as `find_model` takes it.
        deep: also open it and compare what it computes with its stored fingerprint.

    Raises:
        UnknownModelError: nothing has that name.
    """
    folder = find_model(name)
    expected = _recorded_hashes(folder)
    concerned = [folder / file for file in KEPT_FILES if file in expected or (folder / file).is_file()]
    checks = [_check_file(path, expected.get(path.name)) for path in concerned]
    checks.append(_check_opening(folder))
    if deep and not any(check.failed for check in checks):
        checks.append(_check_fingerprint(folder))
    return checks


def _recorded_hashes(folder: Path) -> dict[str, str]:
    if folder == assets.bundled_folder(folder.name):
        return entries.find_entry(folder.name).files
    files = install_record(folder).get("files")
    return {str(file): str(value) for file, value in files.items()} if isinstance(files, dict) else {}


def _check_file(path: Path, expected: str | None) -> Check:
    if not path.is_file():
        return Check(path.name, "missing", f"sha256 should be {expected}")
    found = sha256_of(path)
    if expected is None:
        return Check(path.name, "not recorded", f"sha256 {found}")
    if found != expected:
        return Check(path.name, "wrong", f"sha256 is {found}, should be {expected}")
    return Check(path.name, "right", f"sha256 {found}")


def _check_opening(folder: Path) -> Check:
    try:
        config = read_config(folder)
    except CloobError as error:
        return Check("configuration", "wrong", error.message)
    return Check("configuration", "right", f"{config.vision.kind}, {config.vision.image_size} pixels")


def _check_fingerprint(folder: Path) -> Check:
    from cloob_cli.checkpoint.folder import check_fingerprint

    if not (folder / FINGERPRINT_FILE).is_file():
        return Check("fingerprint", "missing", "no embedding was stored with this model")
    try:
        detail = check_fingerprint(folder)
    except CloobError as error:
        return Check("fingerprint", "wrong", error.message)
    return Check("fingerprint", "right", detail)
