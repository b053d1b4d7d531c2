"""Publish a model: as one file, or as a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli.checkpoint.folder import KEPT_FILES, MODEL_FILES, open_model
from cloob_cli.convert.folder_formats import foreign_form
from cloob_cli.errors import ModelFolderError, RegistryError
from cloob_cli.registry.bundle import write_bundle
from cloob_cli.registry.hub import Reference, parse_reference, plain_errors
from cloob_cli.registry.inventory import install_record
from cloob_cli.registry.resolve import find_model_to_share

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


def bundle_model(name: str, target: Path) -> None:
    """Write a valid model into one file.

    Raises:
        UnknownModelError, ModelFolderError: there is no valid model of that name.
    """
    folder, files = _shared(name)
    own_name = str(install_record(folder).get("name") or _folder_name(folder))
    write_bundle(folder, own_name, files, target)


def push_model(name: str, repository: str, private: bool = False) -> str:
    """Upload a model folder to `ORG/REPO`, which is made where it does not exist.

    Returns:
        The address of the commit.

    Raises:
        UnknownModelError, ModelFolderError: there is no valid model of that name.
        DownloadError, RegistryError: the Hub did not take it.
    """
    from huggingface_hub import HfApi, get_token

    reference = parse_reference(f"hf://{repository}")
    folder, files = _shared(name)
    if not get_token():
        raise RegistryError("uploading needs a token of the Hub", "hf auth login; or set HF_TOKEN")
    api = HfApi()
    try:
        commit = _upload(api, reference, folder, files, private)
    except RuntimeError as problem:  # how huggingface_hub reports a file that did not go through
        raise RegistryError(f"{reference}: {problem}", "try again later") from None
    return str(commit.commit_url)


def _upload(api: HfApi, reference: Reference, folder: Path, files: list[str], private: bool) -> CommitInfo:
    with plain_errors(reference):
        api.create_repo(reference.repository, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=reference.repository,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"Model {folder.name}",
        )


def _shared(name: str) -> tuple[Path, list[str]]:
    folder = find_model_to_share(name)
    if form := foreign_form(folder):
        raise ModelFolderError(f"{folder} is in {form}'s form", "`cloob zoo add` makes a model folder of it first")
    missing = [file for file in MODEL_FILES if not (folder / file).is_file()]
    if missing:
        raise ModelFolderError(f"{folder} has no {missing[0]}")
    open_model(folder, "cpu")
    return folder, [file for file in KEPT_FILES if (folder / file).is_file()]


def _folder_name(folder: Path) -> str:
    """The folder's own; of the model in a training run's folder, the run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name
