"""A folder whose files may be listed and not looked at, also to root, who may do everything."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def close_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system refuse to tell of anything in `folder`, as where its permissions are r--."""
    stat, own = os.stat, os.path.join(os.path.abspath(folder), "")

    def refusing(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(own):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refusing)
