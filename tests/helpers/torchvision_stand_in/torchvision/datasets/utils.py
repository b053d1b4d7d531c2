from __future__ import annotations

from typing import Any


def download_and_extract_archive(*arguments: Any, **settings: Any) -> None:
    raise NotImplementedError


verify_str_arg = download_and_extract_archive
