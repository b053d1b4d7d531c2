"""The index that a folder of images keeps of itself: where it is, how it is brought up to date, and its model."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console
from cloob_cli.commands.index_run import IndexOptions, Updated, index_lock, update_index
from cloob_cli.commands.inference_run import find_images, open_model
from cloob_cli.errors import InputError, UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloob_cli.core.model import CloobModel
    from cloob_cli.inference.index.files import IndexFiles

_FOLDER = ".cloob"  # hidden, so that no search for images goes into it
_NAME = "emb.npy"


def folder_index(source: Path) -> IndexFiles:
    """The files of the index of a folder: in `.cloob` inside it, or below CLOOB_HOME where that cannot be written."""
    from cloob_cli.inference.index.files import IndexFiles
    from cloob_cli.registry import paths

    own = source / _FOLDER
    if os.access(own if own.exists() else source, os.W_OK | os.X_OK):
        return IndexFiles.of(own / _NAME)
    key = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]
    elsewhere = IndexFiles.of(paths.home() / "indexes" / key / _NAME)
    inside = IndexFiles.of(own / _NAME)
    if inside.index.is_file() and not elsewhere.index.is_file():  # made while the folder could be written
        elsewhere.index.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside.embeddings, elsewhere.embeddings)
        shutil.copyfile(inside.index, elsewhere.index)
    return elsewhere


def current_folder_index(
    source: Path, options: IndexOptions, *, no_update: bool = False
) -> tuple[IndexFiles, Updated | None]:
    """The index of a folder, brought up to date or as it is, and what that made; None where it was left as it is.

    Raises:
        InputError: it is to be taken as it is, and there is none.
        UsageError, NothingFoundError: as `update_folder_index`.
    """
    files = folder_index(source)
    if not no_update:
        return files, update_folder_index(source, files, options)
    if not files.index.is_file():
        raise InputError(f"{source} has no index yet", "leave out --no-update")
    return files, None


def update_folder_index(source: Path, files: IndexFiles, options: IndexOptions) -> Updated:
    """Bring the index of a folder up to date, with the model and the options that it was made with.

    Raises:
        UsageError: it was made with another model than `options` name.
        NothingFoundError: there is no image that can be read.
    """
    from cloob_cli.atomic_files import remove_abandoned
    from cloob_cli.inference.index.reading import find_index
    from cloob_cli.path_text import path_text

    remove_abandoned(files.embeddings.parent)
    paths = find_images([source])
    files.embeddings.parent.mkdir(parents=True, exist_ok=True)
    with index_lock(files):
        stored = None if options.rebuild else find_index(files)
        if stored:
            options = _as_before(stored.metadata, options)
        return update_index(files, paths, options, lambda path: path_text(path.relative_to(source)))


def model_of(metadata: Mapping[str, str], embeddings: Path, options: IndexOptions, width: int) -> CloobModel:
    """Open the model that embeddings were made with; a notice on stderr where these do not say which one did.

    Args:
        width: the number of numbers of an embedding.

    Raises:
        UsageError: `options` name another model, or the default one is another and that one is not found here.
        InputError: the model's embeddings have another width.
    """
    from cloob_cli.checkpoint.folder import read_config, weights_sha256
    from cloob_cli.inference.index.reading import refuse_other
    from cloob_cli.registry.resolve import find_model

    name = _model_name(metadata, options.model)
    folder = find_model(name)
    found = {"weights_sha256": weights_sha256(folder), "model": folder.name}
    refuse_other(embeddings, metadata, found, "name its model with --model")
    own_width = read_config(folder).embed_dim
    if own_width != width:
        raise InputError(
            f"embeddings in {embeddings} have {width} numbers, and those of the model {folder.name} {own_width}",
            "name the model that made them with --model",
        )
    if "weights_sha256" not in metadata:
        tell_unknown_model(embeddings, folder.name)
    model, _ = open_model(name, options.device, options.precision)
    return model


def tell_unknown_model(embeddings: Path, model: str) -> None:
    """Say on stderr that embeddings are compared with those of a model that may not have made them."""
    console.info(f"{embeddings} does not say which model made it; if it was not {model}, the scores mean nothing")


def _as_before(metadata: Mapping[str, str], options: IndexOptions) -> IndexOptions:
    pass_size, is_usual = metadata.get("pass_size", ""), metadata.get("device") == "cpu"
    return replace(
        options,
        model=_model_name(metadata, options.model),
        exact=options.exact or metadata.get("decoding") == "exact",
        batch_size=options.batch_size if is_usual or not pass_size.isdigit() else int(pass_size),
    )


def _model_name(metadata: Mapping[str, str], chosen: str | None) -> str | None:
    """The model to open: what was chosen, or else the one of the metadata where that is found by its name."""
    from cloob_cli.checkpoint.folder import weights_sha256
    from cloob_cli.registry.resolve import find_model

    name = metadata.get("model")
    if chosen is not None or not name:
        return chosen
    try:
        for candidate in (None, name):
            if weights_sha256(find_model(candidate)) == metadata.get("weights_sha256"):
                return candidate
    except (UnknownModelError, InputError):
        pass
    return None
