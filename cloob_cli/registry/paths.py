"""Paths of the zoo on this machine: installed models, downloads, quarantine, locks and settings."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of everything below: `$CLOOB_HOME`, or `cloob` under Hugging Face's own home."""
    chosen = os.environ.get("CLOOB_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "cloob"


def models_folder() -> Path:
    """The folder of the installed models, one folder each."""
    return home() / "models"


def installed_folder(name: str) -> Path:
    """The folder that a model of that name is installed in, whether it exists or not."""
    return models_folder() / name


def downloads_folder() -> Path:
    """The folder of unfinished downloads, and of finished ones that are not installed yet."""
    return home() / "downloads"


def quarantine_folder() -> Path:
    """The folder of files that proved to be others than expected, kept for a person to look at."""
    return home() / "quarantine"


def locks_folder() -> Path:
    """The folder of the files that locks are held on."""
    return home() / "locks"


def default_file() -> Path:
    """The file that holds the name chosen with `cloob zoo default NAME`."""
    return home() / "default"


def pinned_hashes_file() -> Path:
    """The file that holds addresses with the hash of what was first received from each."""
    return home() / "pinned_hashes.json"


def evaluation_folder() -> Path:
    """The folder of embeddings that `cloob eval` computed; it can be deleted at any time."""
    return home() / "evaluation"


def label_embeddings_folder() -> Path:
    """The folder of label texts' embeddings that `cloob classify` computed; it can be deleted at any time."""
    return home() / "label-embeddings"


def datasets_folder() -> Path:
    """The folder of data sets that were fetched for evaluation, one folder each."""
    return home() / "datasets"
