"""Giving a model away: as one file, or as a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from cloob_cli.errors import ModelFolderError, RegistryError
from cloob_cli.registry import store
from cloob_cli.registry.bundle import write_bundle
from cloob_cli.registry.hub import Reference, parse_reference, plain_errors
from cloob_cli.registry.inventory import install_record

_SHARED_FILES = (*store.MODEL_FILES, store.FINGERPRINT_FILE)


def bundle_model(name: str, target: Path) -> None:
    """Write a sound model into one file.

    Raises:
        UnknownModelError, ModelFolderError: there is no sound model of that name.
    """
    folder, files = _shared(name)
    own_name = str(install_record(folder).get("name") or folder.resolve().name)
    write_bundle(folder, own_name, files, target)


def push_model(name: str, repository: str, private: bool = False) -> str:
    """Upload a model folder to `ORG/REPO`, which is made where it does not exist.

    Returns:
        The address of the commit.

    Raises:
        UnknownModelError, ModelFolderError: there is no sound model of that name.
        DownloadError, RegistryError: the Hub did not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    reference: Reference = parse_reference(f"hf://{repository}")
    folder, files = _shared(name)
    api = HfApi()
    try:
        with plain_errors(reference):
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=files, commit_message=f"Model {folder.name}"
            )
    except HfHubHTTPError as problem:
        raise RegistryError(f"the Hub refused the upload: {problem}", "hf auth login") from None
    return str(commit.commit_url)


def _shared(name: str) -> tuple[Path, list[str]]:
    folder = store.find(name)
    missing = [file for file in store.MODEL_FILES if not (folder / file).is_file()]
    if missing:
        raise ModelFolderError(f"{folder} has no {missing[0]}")
    store.open_model(folder, "cpu")
    return folder, [file for file in _SHARED_FILES if (folder / file).is_file()]
